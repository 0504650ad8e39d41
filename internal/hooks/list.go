package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Script is one that runs.
type Script struct {
	Name string // 10-dnf
	Path string // where it was found
	Hash string // of its content; of a script on this machine only Pending looks
	// Fleet: Path is one of the fleet repo, of a Proposed script.
	Fleet bool
}

func (s Script) name(phase Phase) string { return string(phase) + ".d/" + s.Name }

// Ignored is something that does not run.
type Ignored struct {
	Path   string
	Reason string
	Meant  bool // somebody has masked or replaced it
}

// Proposed is a script of the fleet repo that lies in no directory of this
// machine yet.
type Proposed struct {
	Phase      Phase  `json:"phase"`
	Name       string `json:"name"` // 10-dnf
	Path       string `json:"path"` // in the fleet repo
	Executable bool   `json:"executable"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
}

// candidate is a file that may be a script.
type candidate struct {
	Script
	masks  bool
	reason string // why it is not run
}

// List is what a phase has, in the order of running: names are compared byte
// by byte. A name that an earlier directory has, in whatever condition, is not
// looked for in a later one.
func (r *Runner) List(phase Phase) ([]Script, []Ignored, error) { return r.Preview(phase, nil) }

// Preview is List with the proposed scripts as one more directory, the last.
func (r *Runner) Preview(phase Phase, proposed []Proposed) ([]Script, []Ignored, error) {
	var places [][]candidate
	var ignored []Ignored
	for _, dir := range r.Dirs {
		found, distrusted, err := r.directory(filepath.Join(dir, string(phase)+".d"))
		if err != nil {
			return nil, nil, err
		}
		places, ignored = append(places, found), append(ignored, distrusted...)
	}
	var last []candidate
	for _, p := range proposed {
		if p.Phase == phase {
			last = append(last, candidate{Script: Script{Name: p.Name, Path: p.Path, Hash: p.SHA256, Fleet: true}, reason: p.unfit()})
		}
	}
	scripts, left := merge(append(places, last))
	return scripts, append(ignored, left...), nil
}

// unfit says why a script of the fleet repo is not run, "" if it is.
func (p *Proposed) unfit() string {
	switch {
	case !p.Executable:
		return notExecutable
	case p.Size == 0:
		return isEmpty
	}
	return ""
}

// merge takes each name from the first place that has it.
func merge(places [][]candidate) (scripts []Script, ignored []Ignored) {
	taken := map[string]string{} // name -> what it is
	for _, place := range places {
		for _, c := range place {
			if reason := NoScript(c.Name); reason != "" {
				ignored = append(ignored, Ignored{Path: c.Path, Reason: reason})
				continue
			}
			if by, ok := taken[c.Name]; ok {
				ignored = append(ignored, Ignored{Path: c.Path, Reason: by, Meant: true})
				continue
			}
			taken[c.Name] = c.Path + " takes its place"
			switch {
			case c.masks:
				taken[c.Name] = "masked by " + c.Path
				ignored = append(ignored, Ignored{Path: c.Path, Reason: "a mask: a link to " + os.DevNull, Meant: true})
			case c.reason != "":
				ignored = append(ignored, Ignored{Path: c.Path, Reason: c.reason})
			default:
				scripts = append(scripts, c.Script)
			}
		}
	}
	slices.SortFunc(scripts, func(a, b Script) int { return strings.Compare(a.Name, b.Name) })
	return scripts, ignored
}

// directory looks at everything that lies in a script directory.
func (r *Runner) directory(dir string) ([]candidate, []Ignored, error) {
	real, err := r.resolve(dir)
	var distrust *distrustError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case errors.As(err, &distrust):
		return nil, []Ignored{{Path: dir, Reason: distrust.Error()}}, nil
	case err != nil:
		return nil, nil, fmt.Errorf("looking for scripts: %w", err)
	case !real.info.IsDir():
		return nil, []Ignored{{Path: dir, Reason: "no directory"}}, nil
	}
	entries, err := os.ReadDir(real.path)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for scripts: %w", err)
	}
	var all []candidate
	for _, entry := range entries {
		c := candidate{Script: Script{Name: entry.Name(), Path: filepath.Join(dir, entry.Name())}}
		if target, err := os.Readlink(filepath.Join(real.path, entry.Name())); err == nil && filepath.Clean(target) == os.DevNull {
			c.masks = true
		} else if c.reason, err = r.unfit(c.Path); err != nil {
			return nil, nil, fmt.Errorf("looking at a script: %w", err)
		}
		all = append(all, c)
	}
	return all, nil, nil
}

// PhaseOf is the phase whose directory has that name; what else there is in
// its place is explained.
func PhaseOf(dir string) (phase Phase, reason string) {
	name, ok := strings.CutSuffix(dir, ".d")
	if ok && slices.Contains(Phases, Phase(name)) {
		return Phase(name), ""
	}
	if meant := Phase(strings.ReplaceAll(strings.TrimSuffix(dir, ".d"), "-", "_")); slices.Contains(Phases, meant) {
		return "", fmt.Sprintf("no script directory: is it meant to be %s.d?", meant)
	}
	return "", "no script directory"
}

// Strays is what lies beside the script directories and is never looked into,
// such as one whose name is not quite that of a phase.
func (r *Runner) Strays() ([]Ignored, error) {
	var strays []Ignored
	for _, dir := range r.Dirs {
		real, err := r.Host.Path(dir)
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(real)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for script directories: %w", err)
		}
		for _, entry := range entries {
			_, reason := PhaseOf(entry.Name())
			if reason == "" {
				continue
			}
			strays = append(strays, Ignored{Path: filepath.Join(dir, entry.Name()), Reason: reason})
		}
	}
	return strays, nil
}

// NoScript tells names that are nobody's script, whatever their mode: they
// come beside a script by editing it or by updating its package. "" may be one.
func NoScript(name string) string {
	if strings.HasPrefix(name, ".") {
		return "a hidden file"
	}
	if strings.EqualFold(strings.TrimSuffix(name, filepath.Ext(name)), "README") {
		return "documentation"
	}
	for _, suffix := range []string{"~", ".bak", ".orig", ".rej", ".swp", ".swo", ".tmp"} {
		if strings.HasSuffix(name, suffix) {
			return "an editor's copy (" + suffix + ")"
		}
	}
	if strings.HasPrefix(name, "#") {
		return "an editor's copy (#)"
	}
	for _, suffix := range []string{".rpmsave", ".rpmnew", ".rpmorig", ".dpkg-old", ".dpkg-dist", ".dpkg-new", ".dpkg-tmp", ".ucf-old", ".ucf-dist", ".ucf-new"} {
		if strings.HasSuffix(name, suffix) {
			return "a package manager's copy (" + suffix + ")"
		}
	}
	return ""
}

const (
	notExecutable = "not executable"
	isEmpty       = "empty"
)

// unfit says why a file is not run, "" if it is.
func (r *Runner) unfit(path string) (string, error) {
	found, err := r.resolve(path)
	var distrust *distrustError
	switch {
	case errors.As(err, &distrust):
		return distrust.Error(), nil
	case errors.Is(err, fs.ErrNotExist):
		return "a link to nothing", nil
	case err != nil:
		return "", err
	case found.info.IsDir():
		return "a directory", nil
	case !found.info.Mode().IsRegular():
		return "no regular file", nil
	case found.info.Mode().Perm()&0o100 == 0:
		return notExecutable, nil
	case found.info.Size() == 0:
		return isEmpty, nil
	}
	return "", nil
}

// distrustError is something that others than root could have written.
type distrustError struct{ text string }

func (e *distrustError) Error() string { return e.text }

type resolved struct {
	path string // on this machine, without links
	info fs.FileInfo
}

// resolve follows a path from the root of the host, element by element, and
// trusts nothing that others than root can change: neither a directory on the
// way, nor a link, nor what it ends at.
func (r *Runner) resolve(path string) (resolved, error) {
	const maxLinks = 40
	root, err := r.look(r.Host.Root)
	if err != nil {
		return root, err
	}
	at, rest := root, elements(path)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if !at.info.IsDir() {
			return at, &fs.PathError{Op: "looking into", Path: at.path, Err: fs.ErrNotExist}
		}
		to := filepath.Join(at.path, name)
		if name == ".." && at.path == root.path {
			to = root.path
		}
		next, err := r.look(to)
		if err != nil {
			return at, err
		}
		if next.info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return at, &distrustError{"a chain of links without an end"}
		}
		target, err := os.Readlink(next.path)
		if err != nil {
			return at, err
		}
		if rest = append(elements(target), rest...); filepath.IsAbs(target) {
			at = root
		}
	}
	return at, nil
}

func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// look returns a *distrustError for what others than root can change.
func (r *Runner) look(path string) (resolved, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return resolved{}, err
	}
	name := path
	if !r.Host.Live() {
		name = "/" + strings.TrimPrefix(strings.TrimPrefix(path, r.Host.Root), "/")
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
		return resolved{}, &distrustError{fmt.Sprintf("%s belongs to uid %d, not to root", name, stat.Uid)}
	}
	// The mode of a link means nothing.
	if info.Mode()&fs.ModeSymlink == 0 {
		for _, who := range []struct {
			bit  fs.FileMode
			name string
		}{{0o002, "everybody"}, {0o020, "its group"}} {
			if info.Mode().Perm()&who.bit != 0 {
				return resolved{}, &distrustError{fmt.Sprintf("%s is writable by %s (mode %04o)", name, who.name, info.Mode().Perm())}
			}
		}
	}
	return resolved{path: path, info: info}, nil
}
