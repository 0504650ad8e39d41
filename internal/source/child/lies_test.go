package child_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/reconf-pull/reconf-pull/internal/source"
	"github.com/reconf-pull/reconf-pull/internal/source/child"
	"github.com/reconf-pull/reconf-pull/internal/source/gogit"
	"github.com/reconf-pull/reconf-pull/internal/source/objects"
)

// A little repository that the liar has: one blob in one tree in two commits.
var (
	content   = "hello\n"
	blobID    = name("blob", content)
	treeText  = "100644 motd\x00" + raw(blobID)
	treeID    = name("tree", treeText)
	firstText = "tree " + treeID + "\nauthor a <a> 1 +0000\ncommitter a <a> 1 +0000\n\nfirst\n"
	firstID   = name("commit", firstText)
	tipText   = "tree " + treeID + "\nparent " + firstID + "\nauthor a <a> 2 +0000\ncommitter a <a> 2 +0000\n\ntip\n"
	tipID     = name("commit", tipText)
	stray     = "tree " + treeID + "\nauthor b <b> 1 +0000\ncommitter b <b> 1 +0000\n\nstray\n"
	revision  = fmt.Sprintf(`{"ref": "refs/heads/main", "commit": %q}`, tipID)
	objectsOf = map[string]string{blobID: content, treeID: treeText, firstID: firstText, tipID: tipText}
	unknown   = strings.Repeat("1", 40)
)

func name(kind, text string) string {
	return fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "%s %d\x00%s", kind, len(text), text)))
}

func raw(id string) string {
	b, err := hex.DecodeString(id)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func number(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }

func frame(kind byte, text string) string {
	return string(kind) + string(binary.BigEndian.AppendUint32(nil, uint32(len(text)))) + text
}

// object is the answer with an object that is whole.
func object(text string) string { return number(uint64(len(text))) + number(0) + text }

// lies are answers of a process that has been taken over: to the request of the
// kind, what it writes instead of the truth.
var lies = map[string]struct {
	to   byte
	says func(request string) string
	// What becomes of it.
	kind error
	want string
}{
	"a commit of another content":  {'O', only(tipID, object(strings.Replace(tipText, "tip", "TIP", 1))), source.ErrDamaged, "commit " + tipID + ": its bytes are not what its id names"},
	"another commit":               {'O', only(tipID, object(firstText)), source.ErrDamaged, "its bytes are not what its id names"},
	"a tree as a commit":           {'O', only(tipID, object(treeText)), source.ErrDamaged, "its bytes are not what its id names"},
	"a tree of another content":    {'O', only(treeID, object(strings.Replace(treeText, "motd", "mota", 1))), source.ErrDamaged, "tree " + treeID + ": its bytes are not what its id names"},
	"a blob of another content":    {'O', only(blobID, object("HELLO\n")), source.ErrDamaged, "blob " + blobID + ": its bytes are not what its id names"},
	"a longer blob":                {'O', only(blobID, number(6)+number(0)+content+"more"), source.ErrDamaged, "blob " + blobID + " is larger than it says"},
	"a shorter blob":               {'O', only(blobID, number(6)+number(0)+"hell"), source.ErrDamaged, "blob " + blobID + " is smaller than it says"},
	"a longer tree":                {'O', only(treeID, number(uint64(len(treeText)))+number(0)+treeText+"x"), source.ErrDamaged, "or more and says"},
	"a shorter tree":               {'O', only(treeID, number(uint64(len(treeText)))+number(0)+treeText[:9]), source.ErrDamaged, "or more and says"},
	"a commit of a negative size":  {'O', only(tipID, number(1<<63)+number(0)+tipText), nil, "more than the limit of"},
	"a commit of a gigabyte":       {'O', only(tipID, number(1<<30)+number(1)+tipText), nil, "1073741824 bytes, more than the limit of 33554432"},
	"an endless blob":              {'O', only(blobID, number(6)+number(1)+content), source.ErrDamaged, "is larger than it says"},
	"a blob of another size":       {'Z', says(frame('r', number(7))), source.ErrDamaged, "has 7 bytes at one time and 6 at another"},
	"a size that is none":          {'Z', says(frame('r', "six")), source.ErrLocal, "was killed: what it says is not what was asked for: a size of 3 bytes"},
	"an object without a size":     {'O', says(frame('r', "")), source.ErrLocal, "was killed: what it says is not what was asked for: an object without a size"},
	"another branch":               {'F', says(frame('r', strings.Replace(revision, "main", "evil", 1))), source.ErrLocal, `what it says is not what was asked for: commit "` + tipID + `" of "refs/heads/evil"`},
	"a tag":                        {'F', says(frame('r', strings.Replace(revision, "heads", "tags", 1))), source.ErrLocal, "what it says is not what was asked for"},
	"a commit that is no id":       {'F', says(frame('r', strings.Replace(revision, tipID, "../../etc", 1))), source.ErrLocal, "what it says is not what was asked for"},
	"a revision that is none":      {'F', says(frame('r', "\x00")), source.ErrLocal, "no revision"},
	"a kind that there is not":     {'F', says(frame('?', "")), source.ErrLocal, `a message of kind '?'`},
	"a message without an end":     {'F', says("r\x7f\xff\xff\xff"), source.ErrLocal, "a message of 2147483647 bytes"},
	"a message that is cut off":    {'F', says("r\x00\x00\x00\x09abc"), source.ErrLocal, "a message is cut off"},
	"notes without an end":         {'F', says(strings.Repeat(frame('l', `{"Level": "info", "Text": "x"}`), 10_001)), source.ErrLocal, "it says more than 10000 things at once"},
	"a note that is none":          {'F', says(frame('l', "{")), source.ErrLocal, "a note that cannot be read"},
	"an error without a text":      {'F', says(frame('e', "{}")), source.ErrLocal, "an error without a text"},
	"an error that paints":         {'F', says(frame('e', `{"Text": "\u001b[2Jgone\r\nreconf-pull: all is well", "Kinds": ["unavailable"]}`)), source.ErrUnavailable, " [2Jgone  reconf-pull: all is well"},
	"an error that never ends":     {'F', says(frame('e', `{"Text": "`+strings.Repeat("x", 100_000)+`", "Kinds": ["local"]}`)), source.ErrLocal, strings.Repeat("x", 2000) + "…"},
	"a file that is not there":     {'O', onlyFails(treeID, `{"Text": "x", "Kinds": ["notexist", "canceled", "deadline"], "Errno": 2}`), nil, "x"},
	"a run that was ended":         {'F', says(frame('e', `{"Text": "interrupted", "Hinted": true, "Kinds": ["canceled", "unavailable"]}`)), source.ErrUnavailable, "interrupted"},
	"a commit in capitals":         {'F', says(frame('r', strings.Replace(revision, tipID, strings.ToUpper(tipID), 1))), source.ErrLocal, "what it says is not what was asked for"},
	"a commit with a longer id":    {'F', says(frame('r', strings.Replace(revision, tipID, tipID+tipID[:24], 1))), source.ErrLocal, "what it says is not what was asked for"},
	"a shorter id":                 {'F', says(frame('r', strings.Replace(revision, tipID, tipID[:12], 1))), source.ErrLocal, "what it says is not what was asked for"},
	"nothing":                      {'F', nil, source.ErrLocal, "ended before its time: exit status 0"},
	"descent by another commit":    {'H', says(frame('r', number(uint64(len(stray)))+stray)), source.ErrDamaged, "its bytes are not what its id names"},
	"descent by a commit cut off":  {'H', says(frame('r', number(1000)+tipText)), source.ErrLocal, "a commit is cut off"},
	"more commits than were asked": {'H', says(frame('r', strings.Repeat(number(uint64(len(tipText)))+tipText, 100))), source.ErrDamaged, "100 commits are there"},
	"that history is left out":     {'H', says(frame('e', `{"Text": "mirror is too shallow", "Kinds": ["shallow"]}`)), source.ErrShallow, "mirror is too shallow"},
	"fetch: hangs":                 {'F', hangs, source.ErrLocal, "did not answer in time, and was killed"},
	"open: hangs":                  {'O', hangs, source.ErrLocal, "did not answer in time, and was killed"},
	"fetch: says nothing, slowly":  {'F', trickles, source.ErrLocal, "did not answer in time, and was killed"},
	"open: drips":                  {'O', drips, nil, "more than the limit of"},
	"fetch: panics":                {'F', func(string) string { panic("out of order") }, source.ErrLocal, "exit status 2: panic: out of order"},
}

func says(text string) func(string) string { return func(string) string { return text } }

// only lies about one object.
func only(id, answer string) func(string) string {
	return func(request string) string {
		if strings.HasSuffix(request, raw(id)) {
			return frame('r', answer)
		}
		return ""
	}
}

func onlyFails(id, failure string) func(string) string {
	return func(request string) string {
		if strings.HasSuffix(request, raw(id)) {
			return frame('e', failure)
		}
		return ""
	}
}

func hangs(string) string {
	time.Sleep(time.Hour)
	return ""
}

// drips has no end, and every answer is in time.
func drips(string) string {
	time.Sleep(300 * time.Millisecond)
	return frame('r', number(1<<40)+number(1))
}

func trickles(string) string {
	for {
		fmt.Print(frame('p', "."))
		time.Sleep(10 * time.Millisecond)
	}
}

// tell is the process that lies.
func tell(lie string) int {
	in := bufio.NewReader(os.Stdin)
	for {
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return 0
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(in, body); err != nil {
			return 1
		}
		if one := lies[lie]; one.to == head[0] {
			if one.says == nil {
				return 0
			}
			if text := one.says(string(body)); text != "" {
				fmt.Print(text)
				continue
			}
		}
		id := hex.EncodeToString(body[max(0, len(body)-20):])
		switch text, has := objectsOf[id]; {
		case head[0] == 'F':
			fmt.Print(frame('r', revision))
		case head[0] == 'O' && has:
			fmt.Print(frame('r', object(text)))
		case head[0] == 'Z' && has:
			fmt.Print(frame('r', number(uint64(len(text)))))
		case head[0] == 'H' && has:
			fmt.Print(frame('r', number(uint64(len(text)))+text))
		case head[0] == 'N': // without an end
			fmt.Print(frame('r', strings.Repeat("x", 1000)))
		case bytes.ContainsRune([]byte("OZH"), rune(head[0])):
			fmt.Print(frame('e', `{"Text": "it lacks an object", "Kinds": ["missing"]}`))
		default:
			fmt.Print(frame('r', ""))
		}
	}
}

// use does everything that the rest of the program does with a source.
func use(s *fetcher) error {
	ctx := context.Background()
	rev, err := s.Fetch(ctx)
	if err != nil {
		return err
	}
	if rev.Commit != tipID {
		return fmt.Errorf("it fetched %s", rev.Commit)
	}
	if relation, err := s.Relation(ctx, firstID, tipID); err != nil {
		return err
	} else if relation != source.Ahead {
		return fmt.Errorf("the tip is %s", relation)
	}
	if _, err := s.Between(ctx, firstID, tipID); err != nil {
		return err
	}
	tree, err := s.Tree(ctx, tipID)
	if err != nil {
		return err
	}
	e, err := tree.Entry("motd")
	if err != nil {
		return err
	}
	if _, err := tree.Size(e); err != nil {
		return err
	}
	r, err := tree.Open(e)
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err == nil && string(data) != content {
		return fmt.Errorf("the liar was believed: %q", data)
	}
	return err
}

func TestLies(t *testing.T) {
	if err := use(liar(t, "none")); err != nil {
		t.Fatalf("the truth is not believed: %v", err)
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			err := use(liar(t, name))
			if err == nil || !strings.Contains(err.Error(), lie.want) || lie.kind != nil && !errors.Is(err, lie.kind) {
				t.Fatalf("got  %v\nwant %s", err, lie.want)
			}
			// What nobody but this process can know.
			for _, fact := range []error{fs.ErrNotExist, fs.ErrPermission, context.Canceled, context.DeadlineExceeded, io.EOF} {
				if errors.Is(err, fact) {
					t.Errorf("it is believed that %v: %v", fact, err)
				}
			}
			if strings.ContainsAny(err.Error(), "\x1b\n\r") || len(err.Error()) > 2500 {
				t.Errorf("what it says is shown: %.3000q", err.Error())
			}
		})
	}
}

func liar(t *testing.T, lie string) *fetcher {
	return newSource(t, place(t), nil, gogit.Options{URL: "/nowhere", Timeout: 100 * time.Millisecond},
		child.Options{Env: []string{"LIE=" + lie}, Ref: "refs/heads/main", Patience: 2 * time.Second})
}

// Whatever a process says of the history, descent is not believed of a commit that
// does not have it.
func TestDescentIsProven(t *testing.T) {
	ctx := context.Background()
	for _, older := range []string{name("commit", stray), unknown} {
		relation, err := liar(t, "none").Relation(ctx, older, tipID)
		if err != nil || relation != source.Diverged {
			t.Errorf("%s: %s, %v", older, relation, err)
		}
	}
}

// A process that answers in the last moment, every time, does not keep a run for days.
func TestInTimeWithoutEnd(t *testing.T) {
	s := newSource(t, place(t), nil, gogit.Options{URL: "/nowhere"}, child.Options{Env: []string{"LIE=open: drips"}, Patience: time.Second})
	for range 1000 {
		_, _, err := s.Open(objects.Blob, blobID)
		if err == nil {
			continue
		}
		if !errors.Is(err, source.ErrLocal) || !strings.Contains(err.Error(), "did not answer in time") {
			t.Errorf("%v", err)
		}
		return
	}
	t.Error("it goes on and on")
}
