package update

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/reconf-pull/reconf-pull/internal/hooks"
)

// Script is one of the fleet repo's that is pinned with the change.
type Script struct {
	hooks.Proposed
	Open func(context.Context) (io.ReadCloser, error) `json:"-"`
}

// Phases are those whose scripts a change runs, in the order of its steps.
func Phases() []hooks.Phase {
	return slices.DeleteFunc(slices.Clone(hooks.Phases), func(phase hooks.Phase) bool {
		// The one is asked before there is a change, the other is for one that failed.
		return phase == hooks.NeedsUpdate || phase == hooks.Error
	})
}

// scriptDir is where a change or a generation keeps the scripts of the fleet
// repo: <phase>.d lies in it.
func scriptDir(dir string) string { return filepath.Join(dir, "hooks") }

func scriptFile(dir string, s *hooks.Proposed) string {
	return filepath.Join(scriptDir(dir), string(s.Phase)+".d", s.Name)
}

// storeScripts writes the scripts where the steps look for them, with the
// modes that git knows.
func storeScripts(ctx context.Context, dir string, scripts []Script) error {
	for i := range scripts {
		if err := storeScript(ctx, scriptFile(dir, &scripts[i].Proposed), &scripts[i]); err != nil {
			return fmt.Errorf("%s: %w", scripts[i].Path, err)
		}
	}
	return nil
}

func storeScript(ctx context.Context, path string, s *Script) (err error) {
	r, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	seen := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, seen), r); err != nil {
		return err
	}
	if got := hex.EncodeToString(seen.Sum(nil)); got != s.SHA256 {
		return fmt.Errorf("the script changed while it was read: %s, now %s", s.SHA256, got)
	}
	mode := fs.FileMode(0o644)
	if s.Executable {
		mode = 0o755
	}
	return f.Chmod(mode)
}

// checkScripts looks whether all that was pinned is still there: a script that
// is gone would be one that nobody runs and nobody misses.
func checkScripts(dir string) error {
	in, err := ReadInputs(dir)
	if err != nil {
		return err
	}
	for i := range in.Scripts {
		s := &in.Scripts[i].Proposed
		if !whole(scriptFile(dir, s), s.SHA256) {
			return fmt.Errorf("%w: %s is not what was stored", ErrDamaged, scriptFile(dir, s))
		}
	}
	return nil
}
