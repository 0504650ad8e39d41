package container

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/reconf-pull/reconf-pull/internal/host"
	"github.com/reconf-pull/reconf-pull/internal/run"
)

// DefaultFile is the Containerfile that comes with the program.
const DefaultFile = "/usr/share/reconf-pull/salt/Containerfile"

// repository is where the images that are built here get their tags.
const repository = "localhost/reconf-pull-salt"

// fetchTimeout bounds a pull or a build.
const fetchTimeout = 20 * time.Minute

// Image is what the container is made from: one that exists, or one that is
// built from a Containerfile.
type Image struct {
	Prebuilt string // its name; File and Base mean nothing then
	File     string // the Containerfile
	Base     string // its argument BASE; "" for what it says itself
	Scratch  string // a directory for the build, made and removed by it
}

// name of the image. A change of the Containerfile or of the base is another
// image: whether it was built is whether it is there.
func (i *Image) name() (string, error) {
	if i.Prebuilt != "" {
		return i.Prebuilt, nil
	}
	text, err := i.containerfile()
	if err != nil {
		return "", err
	}
	return i.tag(text), nil
}

// maxContainerfile bounds it in bytes.
const maxContainerfile = 1 << 20

func (i *Image) containerfile() ([]byte, error) {
	text, err := host.ReadTrusted(i.File, maxContainerfile)
	if err != nil {
		return nil, &Error{err: fmt.Errorf("reading the Containerfile of the Salt image: %w", err), hint: "engine.container.file in config.toml says which it is"}
	}
	return text, nil
}

func (i *Image) tag(text []byte) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s", i.Base, text))
	const short = 12
	return repository + ":" + hex.EncodeToString(sum[:])[:short]
}

// prepare makes sure that the image is there: only when it is not, the network
// is needed.
func (i *Image) prepare(ctx context.Context, podman run.Runner, log logrus.FieldLogger) error {
	name, err := i.name()
	if err != nil {
		return err
	}
	there, err := exists(ctx, podman, name)
	if err != nil || there {
		return err
	}
	if i.Prebuilt != "" {
		log.Infof("pulling the Salt image %s", name)
		return i.pull(ctx)
	}
	log.Infof("building the Salt image %s from %s", name, i.File)
	if err := i.build(ctx); err != nil {
		return err
	}
	i.removeOthers(ctx, podman, name, log)
	return nil
}

func exists(ctx context.Context, podman run.Runner, image string) (bool, error) {
	_, err := podman.Run(ctx, "podman", "image", "exists", image)
	var failed *run.Error
	if errors.As(err, &failed) && failed.ExitCode() == 1 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for the Salt image %s: %w", image, err)
	}
	return true, nil
}

func (i *Image) pull(ctx context.Context) error {
	said, err := fetch(ctx, "podman", "pull", "--quiet", i.Prebuilt)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &Error{
		err:  fmt.Errorf("pulling the Salt image %s: %w", i.Prebuilt, ended(err, said)),
		hint: "nothing was changed; engine.container.image in config.toml names the image, podman pull shows whether it can be had",
	}
}

// build makes the image from the Containerfile alone, without a context: what
// it is built from is what its tag says.
func (i *Image) build(ctx context.Context) (err error) {
	text, err := i.containerfile()
	if err != nil {
		return err
	}
	file, empty := filepath.Join(i.Scratch, "Containerfile"), filepath.Join(i.Scratch, "context")
	if err := errors.Join(os.RemoveAll(i.Scratch), os.MkdirAll(empty, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(i.Scratch)) }()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	argv := []string{"podman", "build", "--force-rm", "--layers=false", "--tag=" + i.tag(text), "--file=" + file}
	if i.Base != "" {
		if !argument.Match(text) {
			return &Error{err: fmt.Errorf("%s has no ARG BASE, which engine.container.base could set", i.File), hint: "write ARG BASE=IMAGE and FROM ${BASE} into it, or take engine.container.base out of config.toml"}
		}
		argv = append(argv, "--build-arg=BASE="+i.Base)
	}
	said, err := fetch(ctx, append(argv, empty)...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if base := pulling(said); base != "" {
		return &Error{
			err:  fmt.Errorf("pulling the base image %s of %s: %w", base, i.File, ended(err, said)),
			hint: "nothing was changed; engine.container.base in config.toml names another base, engine.container.image an image that is ready",
		}
	}
	return &Error{
		err:  fmt.Errorf("building the Salt image from %s: %w", i.File, ended(err, said)),
		hint: "nothing was changed; the image is built from the Containerfile alone, without a context",
	}
}

// step is a line that podman build prints before each step, FROM among them.
var step = regexp.MustCompile(`(?m)^(?:\[\d+/\d+\] )?STEP \d+/\d+: (\S+) (\S+)`)

// pulling is the base image that a failed build did not get past: the last step
// that was begun is the one that failed.
func pulling(said []byte) string {
	steps := step.FindAllSubmatch(said, -1)
	if len(steps) == 0 || string(steps[len(steps)-1][1]) != "FROM" {
		return ""
	}
	return string(steps[len(steps)-1][2])
}

// argument declares the base, without which engine.container.base says nothing.
var argument = regexp.MustCompile(`(?mi)^\s*ARG\s+BASE\b`)

// fetch runs what may take its time, and returns what it said.
func fetch(ctx context.Context, argv ...string) ([]byte, error) {
	var said bytes.Buffer
	group := &run.Group{Argv: argv, Timeout: fetchTimeout, Output: &said}
	err := group.Run(ctx)
	return said.Bytes(), err
}

// ended is why a program failed, without its arguments, and the end of what it
// said.
func ended(err error, said []byte) error {
	var failed *run.Error
	if errors.As(err, &failed) {
		err = failed.Err
	}
	const lines = 10
	return fmt.Errorf("%w\n%s", err, lastLines(said, lines))
}

// removeOthers takes away images of other Containerfiles, which nothing will
// use again. One that cannot be removed only takes up room.
func (i *Image) removeOthers(ctx context.Context, podman run.Runner, name string, log logrus.FieldLogger) {
	out, err := podman.Run(ctx, "podman", "images", "--format={{.Repository}}:{{.Tag}}", "--filter=reference="+repository)
	for _, image := range strings.Fields(string(out)) {
		if image != name && strings.HasPrefix(image, repository+":") {
			_, gone := podman.Run(ctx, "podman", "rmi", image)
			err = errors.Join(err, gone)
		}
	}
	if err != nil {
		log.Debugf("removing older Salt images: %v", err)
	}
}
