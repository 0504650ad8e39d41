package fleet

import (
	"path"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Single is one Butane file as a host config of its own, outside any fleet:
// what it refers to lies in the tree's root, and the folder beside it that has
// its name belongs to it.
func Single(tree source.Tree, file string) (*HostConfig, error) {
	r := &Repo{Config: Config{Schema: Schema, HostsDir: ".", FilesDir: "."}, tree: tree}
	own := candidate{path: file}
	list, err := r.list(path.Dir(file))
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.Mode == source.Directory && strings.EqualFold(path.Base(e.Path), own.host()) {
			own.beside = e.Path
		}
	}
	return r.read(own.host(), &own, Machine{})
}
