package reconcile

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vincent-petithory/dataurl"

	"github.com/reconf-pull/reconf-pull/internal/butane"
	"github.com/reconf-pull/reconf-pull/internal/source"
)

// Ignition is the config that provisions a new machine as this host: one
// document is what Butane makes of it, several are merged by Ignition itself
// at first boot, each in its own version of the spec.
func (t Translation) Ignition() (json.RawMessage, *Translated, error) {
	translated, err := t.Butane()
	if err != nil {
		return nil, nil, err
	}
	var whole []json.RawMessage
	for _, doc := range translated.Documents {
		raw, err := t.fill(doc.Raw, translated.Nonce)
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

// fill puts the contents where their placeholders stand.
func (t Translation) fill(raw []byte, nonce string) (json.RawMessage, error) {
	var document any
	if err := json.Unmarshal(raw, &document); err != nil {
		return nil, fmt.Errorf("internal error: Butane's own output is no JSON: %w", err)
	}
	if err := t.fillValue(document, butane.Blobs(nonce)); err != nil {
		return nil, err
	}
	return json.Marshal(document)
}

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
