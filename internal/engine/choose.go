package engine

import (
	"context"
	"fmt"
)

// Choice is the engine of a change, and why it is that one.
type Choice struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
}

// The values of engine.kind: the names of the engines, and Auto.
const (
	Auto          = "auto"
	Native        = "native"
	Salt          = "salt"
	SaltContainer = "salt-container"
)

// Machine is what a choice depends on.
type Machine struct {
	Live bool                      // not below another root
	Has  func(program string) bool // on the PATH
}

// Choose says which engine carries out a host config. Migrations are those that
// it has. Its error is a *ChoiceError.
func Choose(kind string, migrations []Migration, m Machine) (Choice, error) {
	what := "the host config has *.sls migrations"
	switch {
	case !m.Live:
		return Choice{Native, "Salt knows no other root"}, nil
	case kind == Native && len(migrations) > 0:
		return Choice{}, &ChoiceError{
			Reason: fmt.Sprintf("%s is a migration for Salt, and engine.kind is \"native\"", migrations[0].Path),
			Advice: "set engine.kind = \"auto\", or take the file out of the fleet repo",
		}
	case kind != Auto:
		return Choice{kind, "engine.kind says so"}, nil
	case len(migrations) == 0:
		return Choice{Native, "the host config has no *.sls migrations"}, nil
	case m.Has("salt-call"):
		return Choice{Salt, what + ", and salt-call is there"}, nil
	case m.Has("podman"):
		return Choice{SaltContainer, what + ", and podman is there, but no salt-call"}, nil
	}
	return Choice{}, &ChoiceError{
		Reason: fmt.Sprintf("%s is a migration for Salt, and this host has neither salt-call nor podman", migrations[0].Path),
		Advice: "install salt-call or podman, or take the file out of the fleet repo",
	}
}

// ChoiceError is a host config that no engine of this host can carry out.
type ChoiceError struct{ Reason, Advice string }

func (e *ChoiceError) Error() string { return e.Reason }

// Hint says what to do about it.
func (e *ChoiceError) Hint() string { return e.Advice }

// Engines are all that this machine has, by their names: each job goes to the
// one that was chosen for it.
type Engines map[string]Engine

func (e Engines) of(job *Job) (Engine, error) {
	name := job.Choice.Name
	if name == "" { // of a change that an earlier release pinned
		name = Native
	}
	if one := e[name]; one != nil {
		return one, nil
	}
	return nil, fmt.Errorf("internal error: the change wants the engine %q, which this release does not know", name)
}

// Check is the chosen engine's.
func (e Engines) Check(ctx context.Context, job *Job) (Result, error) {
	one, err := e.of(job)
	if err != nil {
		return Result{}, err
	}
	return one.Check(ctx, job)
}

// Apply is the chosen engine's.
func (e Engines) Apply(ctx context.Context, job *Job) (Result, error) {
	one, err := e.of(job)
	if err != nil {
		return Result{}, err
	}
	return one.Apply(ctx, job)
}

// Rollback is the chosen engine's.
func (e Engines) Rollback(ctx context.Context, job *Job) (Result, error) {
	one, err := e.of(job)
	if err != nil {
		return Result{}, err
	}
	return one.Rollback(ctx, job)
}

// Clean is the chosen engine's.
func (e Engines) Clean(ctx context.Context, job *Job) error {
	one, err := e.of(job)
	if err != nil {
		return err
	}
	return one.Clean(ctx, job)
}
