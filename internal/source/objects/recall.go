package objects

import (
	"encoding/json"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/version"
)

// Memory knows what was found in large folders when they were last read, so that a
// folder of all hosts is read again only when it has changed. A folder's id stands for
// its content: an answer never grows old. Nor is it hashed again, so that a memory
// must be kept where nobody else writes. It may be used by several goroutines.
type Memory struct {
	// Load returns what Save returned in an earlier process, nil for nothing; it is
	// called once, with the first question.
	Load func() []byte

	once        sync.Once
	mu          sync.Mutex
	before, now map[string]answers // by the folder's id
	learnt      bool
}

// answers are entries by what was asked.
type answers map[string][]source.Entry

// LargeFolder is from where on a folder is large, in bytes of its tree object.
const LargeFolder = 64 << 10

// What is remembered is bounded: to read it must be cheaper than to read the folder.
const (
	maxQuestions = 200 // about one folder
	maxEntries   = 20  // of one answer
	maxFolders   = 20
)

type saved struct {
	Program string             `json:"program"` // the version that wrote it: another one may ask otherwise
	Folders map[string]answers `json:"folders"`
}

// recall returns the answer to a question about a folder, if it is known.
func (m *Memory) recall(folder, question string) (answer []source.Entry, ok bool) {
	if m == nil {
		return nil, false
	}
	m.once.Do(func() {
		var s saved
		if json.Unmarshal(m.Load(), &s) == nil && s.Program == version.String() {
			m.before = s.Folders
		}
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if answer, ok = m.now[folder][question]; ok {
		return slices.Clone(answer), true
	}
	if answer, ok = m.before[folder][question]; ok {
		m.note(folder, question, answer)
	}
	return slices.Clone(answer), ok
}

// learn remembers the answer to a question about a folder of so many bytes.
func (m *Memory) learn(folder string, size int, question string, answer []source.Entry) {
	if m == nil || size < LargeFolder || len(answer) > maxEntries || !utf8.ValidString(question) { // which JSON would change
		return
	}
	for _, e := range answer {
		if !utf8.ValidString(e.Path) {
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.learnt = m.note(folder, question, slices.Clone(answer)) || m.learnt
}

func (m *Memory) note(folder, question string, answer []source.Entry) bool {
	if m.now == nil {
		m.now = map[string]answers{}
	}
	of := m.now[folder]
	if of == nil && len(m.now) < maxFolders {
		of = answers{}
		m.now[folder] = of
	}
	if of == nil || len(of) >= maxQuestions {
		return false
	}
	of[question] = answer
	return true
}

// Forget is for when something is wrong with what was read.
func (m *Memory) Forget() {
	m.once.Do(func() {})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before, m.now, m.learnt = nil, nil, false
}

// Save returns what was asked for in this process, and whether any of it is new.
func (m *Memory) Save() (data []byte, learnt bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.learnt {
		return nil, false
	}
	data, err := json.Marshal(saved{version.String(), m.now})
	return data, err == nil
}
