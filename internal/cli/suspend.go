package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reconf-pull/reconf-pull/internal/state"
)

func (a *app) suspendCommand() *cobra.Command {
	until := ""
	cmd := &cobra.Command{
		Use:   "suspend REASON",
		Short: "Keep runs from beginning anything new",
		Long: `Suspend lets further runs finish what is under way and then do nothing, until
reconf-pull resume, or until a time. It counts from the next run. The reason is shown
by status and by every run.`,
		Example: `  reconf-pull suspend "database is being moved" --until 4h
  reconf-pull suspend "change freeze" --until "2027-01-07 06:00"`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, given []string) error { return a.suspend(given[0], until) },
	}
	cmd.Flags().StringVar(&until, "until", "", "end it by itself: a duration (4h), a date, or a local date and time (2027-01-07 06:00)")
	return cmd
}

func (a *app) suspend(reason, until string) error {
	if strings.TrimSpace(reason) == "" {
		return &usageError{fmt.Errorf("say why: the reason is what others see")}
	}
	m, err := a.machine()
	if err != nil {
		return err
	}
	s := state.Suspension{Reason: reason, Since: m.host.Now()}
	if s.Until, err = moment(until, s.Since); err != nil {
		return &usageError{err}
	}
	if err := m.dirs.Create(); err != nil {
		return err
	}
	if err := state.Suspend(m.dirs, s); err != nil {
		return err
	}
	return a.print("suspended " + s.String() + "\n")
}

// moment reads --until; "" is the zero time.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly} {
		t, err := time.ParseInLocation(layout, text, time.Local)
		if err != nil {
			continue
		}
		if !t.After(now) {
			return t, fmt.Errorf("--until %q is in the past", text)
		}
		return t, nil
	}
	return time.Time{}, fmt.Errorf("--until %q is neither a duration (4h) nor a time (2027-01-07 06:00)", text)
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "End a suspension",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			m, err := a.machine()
			if err != nil {
				return err
			}
			was, err := state.Resume(m.dirs)
			switch {
			case err != nil:
				return err
			case was:
				return a.print("resumed: the next run goes on\n")
			default:
				return a.print("nothing was suspended\n")
			}
		},
	}
}
