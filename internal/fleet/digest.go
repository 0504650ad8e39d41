package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Epoch is raised when the same host config gives another result than before:
// every host then applies its own again, once.
const Epoch = "1"

// Digest is the hex SHA-256 over a host config. It alone decides "changed".
type Digest string

// Input is one line of what the digest is computed over.
type Input struct {
	Kind  string      // epoch, host, setting, layer, reference, hook, …
	Field string      // of a reference, in Butane's words
	Name  string      // path in the repo, or what a setting is called
	Mode  source.Mode // 0 for what is no path, and for a reference that leads nowhere
	ID    string      // git object id; the value of what is no path
}

// String is one line of `reconf-pull hash`: the same on every host that has
// the same input.
func (i Input) String() string {
	parts := []string{i.Kind}
	if i.Field != "" {
		parts = append(parts, i.Field)
	}
	if i.Name != "" {
		parts = append(parts, i.Name)
	}
	if i.Mode != 0 {
		parts = append(parts, fmt.Sprintf("%06o", uint32(i.Mode)))
	}
	if i.ID != "" {
		parts = append(parts, i.ID)
	} else {
		parts = append(parts, "-")
	}
	return strings.Join(parts, " ")
}

// digest lists the inputs and hashes them.
func (h *HostConfig) digest(extra []Input) {
	h.Inputs = []Input{
		{Kind: "epoch", ID: Epoch},
		{Kind: "host", ID: h.Name},
		{Kind: "setting", Name: "files_dir", ID: h.FilesDir},
	}
	for _, set := range []struct{ name, value string }{{"machine_id", h.machineID}, {"retired", string(h.Retired)}} {
		if set.value != "" {
			h.Inputs = append(h.Inputs, Input{Kind: "setting", Name: set.name, ID: set.value})
		}
	}
	for _, w := range h.Watches {
		to := w.Unit
		if len(w.Run) > 0 {
			to = fmt.Sprintf("%q", w.Run)
		}
		h.Inputs = append(h.Inputs, Input{Kind: "watch", Name: w.Path, ID: to})
	}
	for _, layer := range h.Layers {
		for _, d := range layer.Documents {
			h.Inputs = append(h.Inputs, Input{Kind: "layer", Name: d.Entry.Path, Mode: d.Entry.Mode, ID: d.Entry.ID})
		}
	}
	for _, ref := range h.References {
		h.Inputs = append(h.Inputs, Input{Kind: "reference", Field: ref.Field, Name: ref.Path, Mode: ref.Entry.Mode, ID: ref.Entry.ID})
	}
	for _, layer := range h.Layers {
		for _, s := range layer.Scripts {
			h.Inputs = append(h.Inputs, Input{Kind: "hook", Name: s.Entry.Path, Mode: s.Entry.Mode, ID: s.Entry.ID})
		}
		for _, e := range layer.refused {
			h.Inputs = append(h.Inputs, Input{Kind: "hook", Name: e.Path, Mode: e.Mode, ID: e.ID})
		}
	}
	h.Inputs = append(h.Inputs, extra...)
	h.Digest = Sum(h.Inputs)
}

// Sum hashes inputs in their order. Every value is preceded by its length, so
// that no two lists have the same bytes.
func Sum(inputs []Input) Digest {
	hash := sha256.New()
	var buf []byte
	put := func(s string) {
		buf = binary.AppendUvarint(buf, uint64(len(s)))
		buf = append(buf, s...)
	}
	for _, i := range inputs {
		buf = buf[:0]
		put(i.Kind)
		put(i.Field)
		put(i.Name)
		buf = binary.AppendUvarint(buf, uint64(i.Mode))
		put(i.ID)
		hash.Write(buf)
	}
	return Digest(hex.EncodeToString(hash.Sum(nil)))
}
