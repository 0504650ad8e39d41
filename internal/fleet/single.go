package fleet

import "github.com/reconf-pull/reconf-pull/internal/source"

// Single is one Butane file as a host config of its own, outside any fleet:
// what it refers to lies in the tree's root.
func Single(tree source.Tree, file string) (*HostConfig, error) {
	r := &Repo{Config: Config{Schema: Schema, HostsDir: ".", FilesDir: "."}, tree: tree}
	own := candidate{path: file}
	return r.read(own.host(), &own, Machine{})
}
