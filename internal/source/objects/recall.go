package objects

import (
	"encoding/json"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/reconf-pull/reconf-pull/internal/source"
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

const (
	// maxAnswers bounds what is remembered of one folder: to read that must be cheaper
	// than the folder.
	maxAnswers = 200
	memoryForm = 1 // of what Save returns
)

type saved struct {
	Form    int                `json:"form"`
	Folders map[string]answers `json:"folders"`
}

// recall returns the answer to a question about a folder, if it is known.
func (m *Memory) recall(folder, question string) (answer []source.Entry, ok bool) {
	if m == nil {
		return nil, false
	}
	m.once.Do(func() {
		var s saved
		if json.Unmarshal(m.Load(), &s) == nil && s.Form == memoryForm {
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
	if m == nil || size < LargeFolder || len(answer) > maxAnswers || !utf8.ValidString(question) { // which JSON would change
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
	if of == nil {
		of = answers{}
		m.now[folder] = of
	}
	if len(of) >= maxAnswers {
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
	data, err := json.Marshal(saved{memoryForm, m.now})
	return data, err == nil
}
