package desired

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/url"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_7_experimental/types"
	"github.com/vincent-petithory/dataurl"
)

// Problem is why a resource of an Ignition config cannot be used.
type Problem struct {
	Field   string // below the resource: source, verification.hash
	Message string
	Hint    string
}

// NewContent says where the bytes of a resource come from. What a data: URL
// holds is decoded, and checked at once if it is not compressed.
func NewContent(res types.Resource) (Content, *Problem) {
	var c Content
	if res.Compression != nil && *res.Compression != "" {
		if *res.Compression != "gzip" {
			return c, &Problem{Field: "compression", Message: fmt.Sprintf("compression %q is not known", *res.Compression)}
		}
		c.Gzip = true
	}
	if res.Verification.Hash != nil {
		c.Verify = *res.Verification.Hash
		if _, _, err := c.Hash(); err != nil {
			return c, &Problem{Field: "verification.hash", Message: err.Error(),
				Hint: "write sha256- or sha512- and the sum in hex"}
		}
	}
	if res.Source == nil || *res.Source == "" {
		c.Gzip = false // Ignition reads an empty source as no bytes, whatever the compression
		return c, c.mismatch()
	}
	u, err := url.Parse(*res.Source)
	if err != nil {
		return c, &Problem{Field: "source", Message: "the source is not a URL"}
	}
	switch u.Scheme {
	case "data":
		data, err := dataurl.DecodeString(*res.Source)
		if err != nil {
			return c, &Problem{Field: "source", Message: fmt.Sprintf("decoding the data: URL: %v", err)}
		}
		c.Inline = data.Data
		if c.Gzip {
			return c, nil
		}
		return c, c.mismatch()
	case "http", "https":
		c.URL = *res.Source
		for _, header := range res.HTTPHeaders {
			if header.Value == nil {
				continue // an empty value takes the header of an earlier layer away
			}
			if c.Headers == nil {
				c.Headers = map[string]string{}
			}
			c.Headers[header.Name] = *header.Value
		}
		if c.Verify == "" {
			return c, &Problem{Field: "source",
				Message: u.Scheme + "://" + u.Host + u.EscapedPath() + ": a remote source needs a verification hash",
				Hint:    "add verification.hash: sha256-… (curl -s URL | sha256sum); without it nobody can tell when the file changes"}
		}
		return c, nil
	default:
		return c, &Problem{Field: "source",
			Message: fmt.Sprintf("%s source: not supported after first boot", u.Scheme),
			Hint:    "use an https source with a verification hash, or a local file"}
	}
}

// mismatch compares inline bytes with their hash.
func (c Content) mismatch() *Problem {
	if c.Verify == "" {
		return nil
	}
	if err := c.check(c.Inline); err != nil {
		return &Problem{Field: "verification.hash", Message: err.Error()}
	}
	return nil
}

// Hash is the function and the sum that Verify names; a nil hash means that
// nothing is to be checked.
func (c Content) Hash() (hash.Hash, string, error) {
	if c.Verify == "" {
		return nil, "", nil
	}
	var h hash.Hash
	function, sum, _ := strings.Cut(c.Verify, "-")
	switch function {
	case "sha256":
		h = sha256.New()
	case "sha512":
		h = sha512.New()
	default:
		return nil, "", fmt.Errorf("verification hash %q is neither sha256- nor sha512-", c.Verify)
	}
	if b, err := hex.DecodeString(sum); err != nil || len(b) != h.Size() {
		return nil, "", fmt.Errorf("verification hash %q is not a %s sum in hex", c.Verify, function)
	}
	return h, strings.ToLower(sum), nil
}

// Unpack turns the bytes that are stored, or were fetched, into the wanted
// ones, of which there may be limit at most: decompressed and checked.
func (c Content) Unpack(stored []byte, limit int64) ([]byte, error) {
	wanted := stored
	if c.Gzip {
		r, err := gzip.NewReader(bytes.NewReader(stored))
		if err != nil {
			return nil, fmt.Errorf("decompressing: %w", err)
		}
		wanted, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil {
			return nil, fmt.Errorf("decompressing: %w", err)
		}
	}
	if int64(len(wanted)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return wanted, c.check(wanted)
}

// MismatchError says that contents are not what verification.hash says.
type MismatchError struct{ Want, Got string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("contents do not match verification.hash: it says %s, they are %s", e.Want, e.Got)
}

func (c Content) check(wanted []byte) error {
	h, sum, err := c.Hash()
	if h == nil || err != nil {
		return err
	}
	h.Write(wanted)
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		function, _, _ := strings.Cut(c.Verify, "-")
		return &MismatchError{Want: c.Verify, Got: function + "-" + got}
	}
	return nil
}
