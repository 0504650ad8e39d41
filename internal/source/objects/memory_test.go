package objects_test

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// chain is a history of large commits, made when they are asked for.
type chain struct {
	at   map[string]int
	ids  []string // the oldest first
	peak uint64   // bytes of the heap
}

const (
	chainLength  = 500
	commitLength = 200 << 10
	noCommit     = "1111111111111111111111111111111111111111"
)

func (c *chain) commit(i int) string {
	text := "tree " + noCommit + "\n"
	if i > 0 {
		text += "parent " + c.ids[i-1] + "\n"
	}
	return text + "author a <a> 1 +0000\n\n" + strings.Repeat("x", commitLength)
}

func (c *chain) Commits(_ context.Context, id string, _ int) ([][]byte, error) {
	i, ok := c.at[id]
	if !ok {
		return nil, objects.ErrMissing
	}
	if i%100 == 0 {
		var now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&now)
		c.peak = max(c.peak, now.HeapAlloc)
	}
	return [][]byte{[]byte(c.commit(i))}, nil
}

func (c *chain) Open(objects.Kind, string) (io.ReadCloser, int64, error) {
	return nil, 0, objects.ErrMissing
}
func (c *chain) Size(string) (int64, error) { return 0, objects.ErrMissing }

// A question about the history keeps the ids of commits and not the commits.
func TestLongHistoryOfLargeCommits(t *testing.T) {
	c := &chain{at: map[string]int{}}
	for i := range chainLength {
		text := c.commit(i)
		id := fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "commit %d\x00%s", len(text), text)))
		c.at[id], c.ids = i, append(c.ids, id)
	}
	relation, err := objects.Repo{Store: c}.Relation(context.Background(), noCommit, c.ids[chainLength-1])
	if err != nil && !errors.Is(err, objects.ErrMissing) || relation != source.Diverged {
		t.Errorf("%s, %v", relation, err)
	}
	const most = 16 << 20
	if c.peak > most {
		t.Errorf("%d MiB of memory for a history of %d MiB", c.peak>>20, chainLength*commitLength>>20)
	}
}
