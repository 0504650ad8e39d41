package reconcile

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vincent-petithory/dataurl"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/desired"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Ignition is the config that provisions a new machine as this host: one
// document is what Butane makes of it, several are merged by Ignition itself
// at first boot, each in its own version of the spec. Files with encrypted contents
// are left out: the agent makes them.
func (t Translation) Ignition() (json.RawMessage, *Translated, error) {
	translated, err := t.Butane()
	if err != nil {
		return nil, nil, err
	}
	var (
		whole     []json.RawMessage
		documents []any
		secrets   = map[string]bool{}
	)
	for _, doc := range translated.Documents {
		var document any
		if err := json.Unmarshal(doc.Raw, &document); err != nil {
			return nil, nil, fmt.Errorf("internal error: Butane's own output is no JSON: %w", err)
		}
		documents = append(documents, document)
		t.findSecrets(document, translated.Nonce, secrets)
	}
	for _, document := range documents {
		leaveOut(document, secrets)
		if err := t.fillValue(document, butane.Blobs(translated.Nonce)); err != nil {
			return nil, nil, err
		}
		raw, err := json.Marshal(document)
		if err != nil {
			return nil, nil, err
		}
		whole = append(whole, raw)
	}
	if len(whole) == 1 {
		return whole[0], translated, nil
	}
	type reference struct {
		Source string `json:"source"`
	}
	merge := []reference{}
	for _, raw := range whole {
		merge = append(merge, reference{"data:;base64," + base64.StdEncoding.EncodeToString(raw)})
	}
	raw, err := json.Marshal(map[string]any{"ignition": map[string]any{"version": "3.0.0", "config": map[string]any{"merge": merge}}})
	return raw, translated, err
}

// storage is one of the lists of an Ignition config's storage section.
func storage(document any, list string) (map[string]any, []any) {
	root, _ := document.(map[string]any)
	section, _ := root["storage"].(map[string]any)
	entries, _ := section[list].([]any)
	return section, entries
}

// findSecrets notes the paths of files with encrypted contents.
func (t Translation) findSecrets(document any, nonce string, paths map[string]bool) {
	blob := butane.Blobs(nonce)
	_, files := storage(document, "files")
	for _, one := range files {
		file, _ := one.(map[string]any)
		parts, _ := file["append"].([]any)
		for _, part := range append([]any{file["contents"]}, parts...) {
			content, _ := part.(map[string]any)
			text, _ := content["source"].(string)
			url, err := dataurl.DecodeString(text)
			if err != nil {
				continue
			}
			if _, from, ok := blob(url.Data); ok && desired.Encrypted(from) {
				paths[fmt.Sprint(file["path"])] = true
			}
		}
	}
}

// leaveOut takes what stands at one of the paths out of a document: also what
// another layer says of it, and hard links to it.
func leaveOut(document any, paths map[string]bool) {
	for _, list := range []string{"files", "links"} {
		section, entries := storage(document, list)
		if entries == nil {
			continue
		}
		section[list] = slices.DeleteFunc(entries, func(one any) bool {
			entry, _ := one.(map[string]any)
			return paths[fmt.Sprint(entry["path"])] || entry["hard"] == true && paths[fmt.Sprint(entry["target"])]
		})
	}
}

// fillValue puts the contents where their placeholders stand.
func (t Translation) fillValue(value any, blob func([]byte) (string, string, bool)) error {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			if err := t.fillValue(one, blob); err != nil {
				return err
			}
		}
	case map[string]any:
		for key, one := range v {
			text, ok := one.(string)
			if key != "source" || !ok || !strings.HasPrefix(text, "data:") {
				if err := t.fillValue(one, blob); err != nil {
					return err
				}
				continue
			}
			url, err := dataurl.DecodeString(text)
			if err != nil {
				continue // not one of ours
			}
			oid, path, ok := blob(url.Data)
			if !ok {
				continue
			}
			data, err := t.read(oid, path)
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			v[key] = "data:;base64," + base64.StdEncoding.EncodeToString(data)
		}
	}
	return nil
}

func (t Translation) read(oid, path string) ([]byte, error) {
	r, err := t.Tree.Open(source.Entry{Path: path, Mode: source.Regular, ID: oid})
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}
