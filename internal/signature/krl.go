package signature

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"
)

// krlMagic begins a key revocation list: PROTOCOL.krl of OpenSSH.
const krlMagic = "SSHKRL\n\x00"

// The sections of a list, and of its section for certificates.
const (
	krlCertificates = 1
	krlKeys         = 2
	krlSHA1         = 3
	krlSignature    = 4
	krlSHA256       = 5

	krlSerialList   = 0x20
	krlSerialRange  = 0x21
	krlSerialBitmap = 0x22
	krlKeyID        = 0x23
)

// krl is a key revocation list.
type krl struct {
	keys   map[string]bool // marshalled
	sha1   map[string]bool
	sha256 map[string]bool
	certs  []krlAuthority
}

// krlAuthority are the certificates of one authority that are revoked.
type krlAuthority struct {
	authority string // marshalled key; "": any
	ranges    [][2]uint64
	bitmaps   []krlBitmap
	ids       map[string]bool
}

type krlBitmap struct {
	offset uint64
	bits   *big.Int
}

var errShort = errors.New("it is cut off")

// reader takes SSH's wire format apart.
type reader struct {
	data []byte
	err  error
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.data)) {
		r.err, r.data = errShort, nil
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) number() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) bytes() []byte {
	if b := r.take(4); b != nil {
		return r.take(uint64(binary.BigEndian.Uint32(b)))
	}
	return nil
}

func (r *reader) kind() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func parseKRL(data []byte) (*krl, error) {
	k := &krl{keys: map[string]bool{}, sha1: map[string]bool{}, sha256: map[string]bool{}}
	r := &reader{data: data[len(krlMagic):]}
	if version := r.take(4); version == nil || binary.BigEndian.Uint32(version) != 1 {
		return nil, errors.New("its format version is not 1")
	}
	r.number() // of the list
	r.number() // when it was made
	r.number() // flags
	r.bytes()  // reserved
	r.bytes()  // comment
	for r.err == nil && len(r.data) > 0 {
		kind := r.kind()
		section := &reader{data: r.bytes()}
		if r.err != nil {
			break
		}
		into := map[byte]map[string]bool{krlKeys: k.keys, krlSHA1: k.sha1, krlSHA256: k.sha256}[kind]
		switch {
		case into != nil:
			for section.err == nil && len(section.data) > 0 {
				into[string(section.bytes())] = true
			}
		case kind == krlCertificates:
			a, err := parseKRLAuthority(section)
			if err != nil {
				return nil, err
			}
			k.certs = append(k.certs, a)
		case kind == krlSignature:
			return nil, errors.New("it is signed, which cannot be checked: make it without -s")
		default:
			return nil, fmt.Errorf("its section of type %d is not known", kind)
		}
		if section.err != nil {
			return nil, section.err
		}
	}
	return k, r.err
}

func parseKRLAuthority(r *reader) (krlAuthority, error) {
	a := krlAuthority{ids: map[string]bool{}}
	a.authority = string(r.bytes())
	r.bytes() // reserved
	for r.err == nil && len(r.data) > 0 {
		kind := r.kind()
		section := &reader{data: r.bytes()}
		if r.err != nil {
			break
		}
		switch kind {
		case krlSerialList:
			for section.err == nil && len(section.data) > 0 {
				serial := section.number()
				a.ranges = append(a.ranges, [2]uint64{serial, serial})
			}
		case krlSerialRange:
			low := section.number()
			a.ranges = append(a.ranges, [2]uint64{low, section.number()})
		case krlSerialBitmap:
			a.bitmaps = append(a.bitmaps, krlBitmap{offset: section.number(), bits: new(big.Int).SetBytes(section.bytes())})
		case krlKeyID:
			for section.err == nil && len(section.data) > 0 {
				a.ids[string(section.bytes())] = true
			}
		default:
			return a, fmt.Errorf("its section of type %#x for certificates is not known", kind)
		}
		if section.err != nil {
			return a, section.err
		}
	}
	return a, r.err
}

// has tells whether a key is revoked, its certificate, or the authority of that.
func (k *krl) has(key ssh.PublicKey) bool {
	if k.hasKey(plain(key)) {
		return true
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return false
	}
	if k.hasKey(cert.SignatureKey) {
		return true
	}
	for _, a := range k.certs {
		if a.authority != "" && a.authority != string(cert.SignatureKey.Marshal()) {
			continue
		}
		if a.ids[cert.KeyId] {
			return true
		}
		if cert.Serial == 0 { // it has none
			continue
		}
		for _, r := range a.ranges {
			if cert.Serial >= r[0] && cert.Serial <= r[1] {
				return true
			}
		}
		for _, b := range a.bitmaps {
			if n := cert.Serial - b.offset; cert.Serial >= b.offset && n < uint64(b.bits.BitLen()) && b.bits.Bit(int(n)) == 1 {
				return true
			}
		}
	}
	return false
}

func (k *krl) hasKey(key ssh.PublicKey) bool {
	blob := key.Marshal()
	short, long := sha1.Sum(blob), sha256.Sum256(blob)
	return k.keys[string(blob)] || k.sha1[string(short[:])] || k.sha256[string(long[:])]
}
