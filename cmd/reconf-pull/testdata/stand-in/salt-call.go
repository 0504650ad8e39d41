// This is no salt-call but a stand-in for tests of everything around one: it
// carries out the few states that reconf-pull writes, in Salt's way, and prints
// results in Salt's format. What it is called with and what it sees, it notes in
// /var/lib/stand-in. A file /run/stand-in/fail-STAGE or hang-STAGE makes it fail,
// or hang without listening to SIGTERM, in one of the stages mock, test and real;
// /run/stand-in/hang-half makes it hang when half of the states of the last are done,
// and hang-end when all of them are and nobody was told.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gopkg.in/yaml.v3"
)

const notes, orders = "/var/lib/stand-in/", "/run/stand-in/"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(70)
	}
}

func run(args []string) error {
	folder, stage := "", "real"
	for i, arg := range args {
		switch {
		case arg == "-c":
			folder = args[i+1]
		case arg == "mock=True" || arg == "test=True":
			stage = strings.TrimSuffix(arg, "=True")
		}
	}
	if err := note(stage, args); err != nil {
		return err
	}
	if ordered("hang-" + stage) {
		hang()
	}
	results, failed := map[string]any{}, ordered("fail-"+stage)
	sls, err := top(folder)
	if err != nil {
		return err
	}
	all, number := map[string][]state{}, 0
	for _, name := range sls {
		if all[name], err = read(folder, name); err != nil {
			return err
		}
		number += len(all[name])
	}
	for _, name := range sls {
		for _, s := range all[name] {
			if stage == "real" && len(results) == (number+1)/2 && ordered("hang-half") {
				hang()
			}
			r := result{ID: s.id, SLS: name, Number: len(results), Name: s.text("name"), Result: true, Comment: "Not called, mocked", Changes: map[string]any{}}
			if stage != "mock" {
				s.apply(&r, folder, stage == "test")
			}
			if failed && len(results) == 0 {
				r.Result, r.Comment = false, "the stand-in was told to fail"
			}
			failed = failed || r.Result == false
			module, function, _ := strings.Cut(s.function, ".")
			results[strings.Join([]string{module, s.id, r.Name, function}, "_|-")] = r
		}
	}
	if stage == "real" && ordered("hang-end") {
		hang()
	}
	out, err := json.Marshal(map[string]any{"local": results})
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	if failed {
		os.Exit(2)
	}
	return nil
}

func note(stage string, args []string) error {
	if err := os.MkdirAll(notes, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(notes+"calls", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, strings.Join(args, " ")); err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	return os.WriteFile(notes+"mounts-"+stage, mounts, 0o600)
}

func ordered(what string) bool {
	_, err := os.Stat(orders + what)
	return err == nil
}

func hang() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	for n := 0; ; n++ {
		if err := os.WriteFile(notes+"alive", []byte(strconv.Itoa(n)), 0o600); err != nil {
			os.Exit(70)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type result struct {
	ID      string         `json:"__id__"`
	SLS     string         `json:"__sls__"`
	Number  int            `json:"__run_num__"`
	Name    string         `json:"name"`
	Result  any            `json:"result"`
	Comment string         `json:"comment"`
	Changes map[string]any `json:"changes"`
}

func top(folder string) ([]string, error) {
	var file struct {
		Base map[string][]string `yaml:"base"`
	}
	data, err := os.ReadFile(filepath.Join(folder, "sls/top.sls"))
	if err != nil {
		return nil, err
	}
	err = yaml.Unmarshal(data, &file)
	return file.Base["*"], err
}

type state struct {
	id, function string
	args         map[string]any
}

// read keeps the order of the states.
func read(folder, sls string) ([]state, error) {
	data, err := os.ReadFile(filepath.Join(folder, "sls", strings.ReplaceAll(sls, ".", "/")+".sls"))
	if err != nil {
		return nil, err
	}
	var file yaml.Node
	if err := yaml.Unmarshal(data, &file); err != nil || len(file.Content) == 0 {
		return nil, err
	}
	var states []state
	for nodes := range slices.Chunk(file.Content[0].Content, 2) {
		var functions map[string][]map[string]any
		if err := nodes[1].Decode(&functions); err != nil {
			return nil, err
		}
		for function, list := range functions {
			s := state{nodes[0].Value, function, map[string]any{"name": nodes[0].Value}}
			for _, one := range list {
				for name, value := range one {
					s.args[name] = value
				}
			}
			states = append(states, s)
		}
	}
	return states, nil
}

func (s *state) text(name string) string {
	text, _ := s.args[name].(string)
	return text
}

func (s *state) apply(r *result, folder string, dry bool) {
	change, err := s.difference(folder)
	if err == nil && change != nil {
		r.Changes[s.function] = "changed"
		if dry {
			r.Result = nil
		} else {
			err = change()
		}
	}
	r.Comment = "done"
	if err != nil {
		r.Result, r.Comment = false, err.Error()
	}
}

// difference is what there is to do, nil when nothing is.
func (s *state) difference(folder string) (func() error, error) {
	name := s.text("name")
	info, err := os.Lstat(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return nil, err
	}
	there := err == nil
	switch s.function {
	case "test.nop":
		return nil, nil
	case "file.absent":
		if !there || info.IsDir() {
			return nil, nil
		}
		return func() error { return os.Remove(name) }, nil
	case "file.directory":
		if there && info.IsDir() && s.owned(info) {
			return nil, nil
		}
		return func() error {
			if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			return s.own(name)
		}, nil
	case "file.symlink":
		if target, err := os.Readlink(name); err == nil && target == s.text("target") {
			return nil, nil
		}
		return func() error {
			return replace(name, func(temp string) error { return os.Symlink(s.text("target"), temp) })
		}, nil
	case "file.hardlink":
		if other, err := os.Lstat(s.text("target")); there && err == nil && os.SameFile(info, other) {
			return nil, nil
		}
		return func() error { return replace(name, func(temp string) error { return os.Link(s.text("target"), temp) }) }, nil
	case "file.managed":
		return s.managed(name, folder, info)
	}
	return nil, fmt.Errorf("State '%s' was not found in SLS: the stand-in does not know it", s.function)
}

func (s *state) managed(name, folder string, info os.FileInfo) (func() error, error) {
	var want []byte
	source, hasSource := strings.CutPrefix(s.text("source"), "salt://")
	if hasSource {
		var err error
		if want, err = os.ReadFile(filepath.Join(folder, "sls", source)); err != nil {
			return nil, err
		}
	}
	if contents, ok := s.args["contents"].(string); ok {
		want, hasSource = []byte(contents+"\n"), true
	}
	if info != nil && info.Mode().IsRegular() {
		have, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !hasSource || bytes.Equal(have, want) {
			if s.owned(info) {
				return nil, nil
			}
			return func() error { return s.own(name) }, nil
		}
	}
	return func() error {
		return replace(name, func(temp string) error { return errors.Join(os.WriteFile(temp, want, 0o600), s.own(temp)) })
	}, nil
}

// replace writes beside a file and renames. Where something is mounted on it
// that cannot be, and then it is copied over, as Salt does.
func replace(name string, write func(temp string) error) error {
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".stand-in")
	if err := write(temp); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	err := os.Rename(temp, name)
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	defer os.Remove(temp)
	from, err := os.Open(temp)
	if err != nil {
		return err
	}
	defer from.Close()
	into, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(into, from)
	return errors.Join(err, into.Close())
}

func (s *state) number(name string) int {
	switch value := s.args[name].(type) {
	case int:
		return value
	case string:
		if value != "root" {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// mode of chmod(2), which is not os.FileMode's.
func (s *state) mode() uint32 {
	mode, err := strconv.ParseUint(s.text("mode"), 8, 32)
	if err != nil {
		return 0o644
	}
	return uint32(mode)
}

func (s *state) owned(info os.FileInfo) bool {
	stat := info.Sys().(*syscall.Stat_t)
	return int(stat.Uid) == s.number("user") && int(stat.Gid) == s.number("group") && stat.Mode&0o7777 == s.mode()
}

func (s *state) own(name string) error {
	if err := os.Chown(name, s.number("user"), s.number("group")); err != nil {
		return err
	}
	return syscall.Chmod(name, s.mode())
}
