package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/finding"
	"github.com/reconf-pull/reconf-pull/internal/hooks"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Script is a file in a script directory of a layer. Whether it is one that
// runs is for the hooks package to say.
type Script struct {
	Phase hooks.Phase
	Name  string // 10-drain
	Entry source.Entry
}

const maxName = 255 // the kernel's bound, in bytes

// Scripts are those of all layers: of two with the same phase and name, the
// later layer's. They come in the order of the phases and of their names.
func (h *HostConfig) Scripts() []Script {
	type key struct {
		phase hooks.Phase
		name  string
	}
	at := map[key]int{}
	var all []Script
	for _, layer := range h.Layers {
		for _, s := range layer.Scripts {
			if i, ok := at[key{s.Phase, s.Name}]; ok {
				all[i] = s
				continue
			}
			at[key{s.Phase, s.Name}] = len(all)
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Script) int {
		if a.Phase != b.Phase {
			return slices.Index(hooks.Phases, a.Phase) - slices.Index(hooks.Phases, b.Phase)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// scripts reads the folder hooks/ in a layer's folder, "" for a layer that has
// none. What may not lie there is a finding.
func (r *Repo) scripts(layer *Layer, folder string) (finding.List, error) {
	if folder == "" {
		return nil, nil
	}
	dir, err := r.tree.Entry(path.Join(folder, "hooks"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for scripts: %w", err)
	}
	var wrong finding.List
	refuse := func(e source.Entry, at, hint, format string, args ...any) {
		layer.refused = append(layer.refused, e)
		wrong = append(wrong, finding.Finding{
			Severity: finding.Error, Position: finding.Position{File: at}, Message: fmt.Sprintf(format, args...), Hint: hint,
		})
	}
	if dir.Mode != source.Directory {
		refuse(dir, dir.Path, "", "%s, and not the folder of the script directories", kind(dir.Mode))
		return wrong, nil
	}
	list, err := r.tree.List(dir.Path)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir.Path, err)
	}
	for _, d := range list {
		base := path.Base(d.Path)
		if d.Mode.IsFile() && hooks.NoScript(base) != "" {
			continue // a README, or what keeps an empty folder in git
		}
		phase, reason := hooks.PhaseOf(base)
		if reason != "" {
			refuse(d, dir.Path, "the script directories are "+directories(), "%q is %s", base, reason)
			continue
		}
		if d.Mode != source.Directory {
			refuse(d, d.Path, "", "%s, and not a script directory", kind(d.Mode))
			continue
		}
		files, err := r.tree.List(d.Path)
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", d.Path, err)
		}
		for _, f := range files {
			name := path.Base(f.Path)
			switch {
			case len(name) > maxName:
				refuse(f, d.Path, "", "the name %.32q… is longer than %d bytes", name, maxName)
			case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
				refuse(f, d.Path, "name the script in UTF-8, without control characters", "%q cannot be the name of a script", name)
			case f.Mode == source.Symlink:
				refuse(f, f.Path, "keep the script itself in its place; a file that is not executable switches off another layer's script of that name", "it is a symlink, and symlinks are not followed")
			case !f.Mode.IsFile():
				refuse(f, f.Path, "", "%s, and not a script", kind(f.Mode))
			default:
				layer.Scripts = append(layer.Scripts, Script{Phase: phase, Name: name, Entry: f})
			}
		}
	}
	return wrong, nil
}

// kind says what stands where something else should.
func kind(m source.Mode) string {
	switch m {
	case source.Directory:
		return "it is a folder"
	case source.Symlink:
		return "it is a symlink"
	case source.Submodule:
		return "it is a submodule"
	case source.Regular, source.Executable:
		return "it is a file"
	}
	return fmt.Sprintf("it has the mode %06o", uint32(m))
}

func directories() string {
	var names []string
	for _, phase := range hooks.Phases {
		names = append(names, string(phase)+".d")
	}
	return strings.Join(names, ", ")
}
