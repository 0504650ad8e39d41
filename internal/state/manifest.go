package state

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
	"github.com/reconf-pull/reconf-pull/internal/disk"
)

// Origin says how a path came to be managed, and with it what happens when it
// leaves the host config.
type Origin string

// Created and Provisioned paths are removed; of Foreign ones the pristine copy
// comes back. A Parent is a directory that was made only because something
// below it was wanted: it goes when it is empty.
const (
	Created     Origin = "created"
	Provisioned Origin = "provisioned" // by Ignition at first boot
	Foreign     Origin = "foreign"     // there before us
	Parent      Origin = "parent"
)

// Entry is one managed path as we left it.
type Entry struct {
	Path string
	disk.Node
	Origin Origin
	// Source names the bytes by where they came from (a git object id, say), so
	// that an unchanged source is not read again to learn its SHA-256. In the file
	// it also says that they are a secret.
	Source string
	Stat   disk.Stat
}

// UnitEntry is what we manage of a unit besides its files.
type UnitEntry struct {
	Name    string
	Enabled bool
	Before  string // the unit file state before us (systemctl is-enabled), "" when there was no such unit
}

// Manifest is everything that one generation manages, sorted by path and name.
type Manifest struct {
	Entries []Entry
	Units   []UnitEntry
}

// Lookup finds entries by path.
func (m *Manifest) Lookup() map[string]*Entry {
	byPath := make(map[string]*Entry, len(m.Entries))
	for i := range m.Entries {
		byPath[m.Entries[i].Path] = &m.Entries[i]
	}
	return byPath
}

// Revert puts entries back to what they were before a change; nil is that there was
// none.
func (m *Manifest) Revert(before map[string]*Entry) {
	m.Entries = slices.DeleteFunc(m.Entries, func(e Entry) bool {
		_, reverted := before[e.Path]
		return reverted
	})
	for _, entry := range before {
		if entry != nil {
			m.Entries = append(m.Entries, *entry)
		}
	}
	slices.SortFunc(m.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
}

// The manifest's file: tab-separated lines with csv quoting (RFC 4180), read on
// most runs and therefore neither JSON nor a database.
const (
	// SecretSource is in the Source of an entry whose bytes, or a part of them, were
	// decrypted.
	SecretSource = "secret+"

	manifestMagic  = "reconf-pull-manifest"
	manifestSchema = "1"
	pathFields     = 14
	unitFields     = 4
)

// A csv reader takes CR LF inside a field for LF, and a file name may have both.
var (
	escape   = strings.NewReplacer("%", "%25", "\r", "%0D")
	unescape = strings.NewReplacer("%25", "%", "%0D", "\r")
)

// WriteManifest writes the manifest's file durably.
func WriteManifest(path string, m *Manifest) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// StageManifest writes the manifest's file for a caller that makes it durable
// together with what lies beside it.
func StageManifest(path string, m *Manifest) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (m *Manifest) encode() ([]byte, error) {
	var buf bytes.Buffer
	w := csv.NewWriter(&buf)
	w.Comma = '\t'
	rows := [][]string{{manifestMagic, manifestSchema}}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, e := range m.Entries {
		if e.Secret && !strings.Contains(e.Source, SecretSource) {
			e.Source = SecretSource + e.Source
		}
		rows = append(rows, []string{
			"path", escape.Replace(e.Path), string(e.Kind), strconv.FormatUint(uint64(e.Mode), 8), strconv.Itoa(e.UID), strconv.Itoa(e.GID),
			e.SHA256, escape.Replace(e.Target), string(e.Origin), e.Source,
			strconv.FormatUint(e.Stat.Inode, 10), number(e.Stat.Size), number(e.Stat.MTime), number(e.Stat.CTime),
		})
	}
	for _, u := range m.Units {
		rows = append(rows, []string{"unit", u.Name, strconv.FormatBool(u.Enabled), u.Before})
	}
	if err := w.WriteAll(rows); err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	return buf.Bytes(), nil
}

// ReadManifest reads what WriteManifest wrote. A file that is not a manifest
// of this schema is an error that wraps ErrUnreadable.
func ReadManifest(path string) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the manifest: %w", ErrUnreadable, err)
	}
	defer f.Close()
	m, err := decodeManifest(f)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest %s: %w", ErrUnreadable, path, err)
	}
	return m, nil
}

func decodeManifest(r io.Reader) (*Manifest, error) {
	rows := csv.NewReader(r)
	rows.Comma, rows.FieldsPerRecord, rows.ReuseRecord = '\t', -1, true
	m := &Manifest{}
	for n := 1; ; n++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) && n > 1 {
			return m, nil
		}
		if err != nil {
			return nil, err
		}
		switch {
		case n == 1 && len(row) == 2 && row[0] == manifestMagic && row[1] == manifestSchema:
		case n > 1 && row[0] == "path" && len(row) == pathFields:
			entry, err := decodeEntry(row)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			m.Entries = append(m.Entries, entry)
		case n > 1 && row[0] == "unit" && len(row) == unitFields:
			m.Units = append(m.Units, UnitEntry{Name: row[1], Enabled: row[2] == "true", Before: row[3]})
		default:
			return nil, fmt.Errorf("line %d is not of a manifest of schema %s", n, manifestSchema)
		}
	}
}

func decodeEntry(row []string) (Entry, error) {
	var failed error
	number := func(text string, base int) int64 {
		n, err := strconv.ParseInt(text, base, 64)
		if err != nil && failed == nil {
			failed = err
		}
		return n
	}
	inode, err := strconv.ParseUint(row[10], 10, 64)
	if err != nil {
		return Entry{}, err
	}
	entry := Entry{
		Path: unescape.Replace(row[1]),
		Node: disk.Node{
			Kind: disk.Kind(row[2]), Mode: uint32(number(row[3], 8)), UID: int(number(row[4], 10)), GID: int(number(row[5], 10)),
			SHA256: row[6], Target: unescape.Replace(row[7]), Secret: strings.Contains(row[9], SecretSource),
		},
		Origin: Origin(row[8]), Source: row[9],
		Stat: disk.Stat{Inode: inode, Size: number(row[11], 10), MTime: number(row[12], 10), CTime: number(row[13], 10)},
	}
	entry.Size = entry.Stat.Size
	return entry, failed
}
