// Package systemd talks to the service manager of the running machine over
// D-Bus, and does by links what it would do for a machine that is not running.
//
// Its one rule: nothing here decides what is restarted, and nothing of
// go-systemd or godbus leaves this package.
package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/reconf-pull/reconf-pull/internal/atomicfile"
)

// Manager is a connection to the service manager of the running machine.
type Manager struct {
	conn *sddbus.Conn
	raw  *dbus.Conn // for the calls that conn has no method for
}

const (
	busName     = "org.freedesktop.systemd1"
	managerName = busName + ".Manager"
	managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")
)

// Connect reaches the service manager as systemctl does: root by its private
// socket, which also works while the bus restarts, everybody else by the
// system bus. The connection outlives ctx, so that a run that is being ended
// can still put things in order.
func Connect(ctx context.Context) (*Manager, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &Manager{}
	if os.Geteuid() == 0 && m.overSocket() == nil {
		return m, nil
	}
	if err := m.overBus(); err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return m, nil
}

// connectBus is Connect the other way round: only over the bus can somebody
// keep systemd from forgetting a unit.
func connectBus(ctx context.Context) (*Manager, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &Manager{}
	err := m.overBus()
	if err != nil && os.Geteuid() == 0 {
		err = m.overSocket()
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return m, nil
}

func (m *Manager) overSocket() (err error) {
	m.conn, err = sddbus.NewConnection(m.dial(func() (*dbus.Conn, error) {
		return dbus.Dial("unix:path=/run/systemd/private")
	}, false))
	return err
}

func (m *Manager) overBus() (err error) {
	m.conn, err = sddbus.NewConnection(m.dial(func() (*dbus.Conn, error) { return dbus.SystemBusPrivate() }, true))
	return err
}

// dial makes a dialler that remembers the first of the connections it makes:
// the one that calls go over.
func (m *Manager) dial(open func() (*dbus.Conn, error), hello bool) func() (*dbus.Conn, error) {
	m.raw = nil
	return func() (*dbus.Conn, error) {
		conn, err := open()
		if err != nil {
			return nil, err
		}
		if err := handshake(conn, hello); err != nil {
			return nil, err
		}
		if m.raw == nil {
			m.raw = conn
		}
		return conn, nil
	}
}

// handshake is what comes before the first call; hello is for the bus only.
func handshake(conn *dbus.Conn, hello bool) error {
	// The uid, not the name: no lookup of users in a static binary.
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return errors.Join(err, conn.Close())
	}
	if hello {
		if err := conn.Hello(); err != nil {
			return errors.Join(err, conn.Close())
		}
	}
	return nil
}

// Close ends the connection.
func (m *Manager) Close() { m.conn.Close() }

// UnitState is what systemd knows of a unit.
type UnitState struct {
	// ID is the unit's own name when it was asked for by an alias.
	ID            string
	LoadState     string // loaded, not-found, masked, error, …
	ActiveState   string // active, inactive, activating, failed, …
	SubState      string
	UnitFileState string
	InvocationID  string
	// Wanted: a unit that is active, or is being started, wants or requires it.
	Wanted           bool
	NeedDaemonReload bool
	Transient        bool
	// Type, Result, ExitStatus and Restarts are known of services only.
	Type       string // oneshot, notify, …
	Result     string // success, exit-code, …
	ExitStatus int
	Restarts   uint32 // automatic ones since it was last started by hand or by us
}

// Active tells whether the unit runs, or is on its way there.
func (s UnitState) Active() bool {
	switch s.ActiveState {
	case "active", "reloading", "activating", "refreshing":
		return true
	}
	return false
}

// Exists tells whether systemd found something by that name.
func (s UnitState) Exists() bool { return s.LoadState != "" && s.LoadState != "not-found" }

// UnitFileState is what is-enabled prints, "" for a unit that has no file.
// It is read from the disk, not from what systemd has loaded.
func (m *Manager) UnitFileState(ctx context.Context, unit string) (string, error) {
	var state string
	err := m.raw.Object(busName, managerPath).
		CallWithContext(ctx, managerName+".GetUnitFileState", 0, unit).Store(&state)
	if notFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("asking whether %s is enabled: %w", unit, err)
	}
	return state, nil
}

// notFound tells the answers that mean that there is no such unit.
func notFound(err error) bool {
	var answer dbus.Error
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Name {
	case busName + ".NoSuchUnit", "org.freedesktop.DBus.Error.FileNotFound", "System.Error.ENOENT":
		return true
	}
	return false
}

// IsEnabled tells whether an answer of UnitFileState means that the unit will
// be started by itself, or is not there to be enabled: there is nothing to do
// to have it enabled.
func IsEnabled(state string) bool {
	switch state {
	case "enabled", "enabled-runtime", "alias", "static", "generated", "transient":
		return true
	}
	// linked, linked-runtime, indirect, disabled, masked, masked-runtime, bad, ""
	return false
}

// States asks for all units at once; a unit that is unknown has an empty
// LoadState, or not-found. Of a template only the UnitFileState is known.
func (m *Manager) States(ctx context.Context, units []string) (map[string]UnitState, error) {
	states := make(map[string]UnitState, len(units))
	var errs []error
	wanting := map[string][]string{}
	for _, unit := range units {
		if Template(unit) {
			state, err := m.UnitFileState(ctx, unit)
			states[unit], errs = UnitState{ID: unit, UnitFileState: state}, append(errs, err)
			continue
		}
		properties, err := m.conn.GetUnitPropertiesContext(ctx, unit)
		if notFound(err) {
			states[unit] = UnitState{ID: unit}
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("asking for the state of %s: %w", unit, err))
			continue
		}
		state := UnitState{
			ID:               text(properties["Id"]),
			LoadState:        text(properties["LoadState"]),
			ActiveState:      text(properties["ActiveState"]),
			SubState:         text(properties["SubState"]),
			UnitFileState:    text(properties["UnitFileState"]),
			NeedDaemonReload: properties["NeedDaemonReload"] == true,
			Transient:        properties["Transient"] == true,
		}
		if id, ok := properties["InvocationID"].([]byte); ok {
			state.InvocationID = hex.EncodeToString(id)
		}
		if path.Ext(unit) == ".service" && state.LoadState == "loaded" {
			if err := m.addService(ctx, unit, &state); err != nil {
				errs = append(errs, err)
			}
		}
		for _, property := range []string{"WantedBy", "RequiredBy", "BoundBy", "UpheldBy"} {
			names, _ := properties[property].([]string)
			wanting[unit] = append(wanting[unit], names...)
		}
		states[unit] = state
	}
	up, err := m.up(ctx, wanting)
	if err != nil {
		errs = append(errs, err)
	}
	for unit, names := range wanting {
		state := states[unit]
		state.Wanted = slices.ContainsFunc(names, func(name string) bool { return up[name] })
		states[unit] = state
	}
	return states, errors.Join(errs...)
}

func (m *Manager) addService(ctx context.Context, unit string, state *UnitState) error {
	properties, err := m.conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return fmt.Errorf("asking for the state of %s: %w", unit, err)
	}
	state.Type = text(properties["Type"])
	state.Result = text(properties["Result"])
	state.Restarts, _ = properties["NRestarts"].(uint32)
	if status, ok := properties["ExecMainStatus"].(int32); ok {
		state.ExitStatus = int(status)
	}
	return nil
}

// up tells which of the units are active or have a start queued: at boot
// multi-user.target is not active yet when the run is resumed.
func (m *Manager) up(ctx context.Context, wanting map[string][]string) (map[string]bool, error) {
	var names []string
	for _, more := range wanting {
		names = append(names, more...)
	}
	if len(names) == 0 {
		return nil, nil
	}
	units, err := m.conn.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing units: %w", err)
	}
	up := map[string]bool{}
	for _, unit := range units {
		starting := unit.JobId != 0 && (unit.JobType == "start" || unit.JobType == "restart")
		up[unit.Name] = starting || UnitState{ActiveState: unit.ActiveState}.Active()
	}
	return up, nil
}

func text(value any) string {
	s, _ := value.(string)
	return s
}

// Reload makes systemd read its units again, and run its generators.
func (m *Manager) Reload(ctx context.Context) error {
	if err := m.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reloading systemd: %w", err)
	}
	return nil
}

// ResetFailed forgets the failures, and the start limits, of these units only.
func (m *Manager) ResetFailed(ctx context.Context, units []string) error {
	var errs []error
	for _, unit := range units {
		if Template(unit) {
			continue
		}
		if err := m.conn.ResetFailedUnitContext(ctx, unit); err != nil && !notFound(err) {
			errs = append(errs, fmt.Errorf("resetting the failure of %s: %w", unit, err))
		}
	}
	return errors.Join(errs...)
}

// LinkChange is a link that enabling or disabling made (Target is set) or removed.
type LinkChange struct{ Path, Target string }

// Enable makes the links of [Install], of every unit by itself: one bad name
// does not stop the others. systemd sees them after a Reload.
func (m *Manager) Enable(ctx context.Context, units []string) ([]LinkChange, error) {
	return m.each(units, "enabling", func(unit string) ([]LinkChange, error) {
		_, changes, err := m.conn.EnableUnitFilesContext(ctx, []string{unit}, false, false)
		var links []LinkChange
		for _, change := range changes {
			links = append(links, linkChange(change.Type, change.Filename, change.Destination)...)
		}
		return links, err
	})
}

// Disable removes the links, of a template those of all its instances. A unit
// without a file has none that anybody could find, and is passed over.
func (m *Manager) Disable(ctx context.Context, units []string) ([]LinkChange, error) {
	return m.each(units, "disabling", func(unit string) ([]LinkChange, error) {
		changes, err := m.conn.DisableUnitFilesContext(ctx, []string{unit}, false)
		var links []LinkChange
		for _, change := range changes {
			links = append(links, linkChange(change.Type, change.Filename, "")...)
		}
		if notFound(err) {
			err = nil
		}
		return links, err
	})
}

func (m *Manager) each(units []string, doing string, do func(string) ([]LinkChange, error)) ([]LinkChange, error) {
	var (
		links []LinkChange
		errs  []error
	)
	for _, unit := range units {
		more, err := do(unit)
		links = append(links, more...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", doing, unit, err))
		}
	}
	// systemd syncs no link, and one that an earlier, killed run had made is no change
	// any more.
	if len(units) > 0 {
		if err := atomicfile.SyncFS(configDir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s units: %w", doing, err))
		}
	}
	return links, errors.Join(errs...)
}

// linkChange drops what systemd only remarks (a wanted unit that does not exist).
func linkChange(kind, file, target string) []LinkChange {
	if kind != "symlink" && kind != "unlink" {
		return nil
	}
	return []LinkChange{{Path: file, Target: target}}
}

// Instances are the loaded instances of a template.
func (m *Manager) Instances(ctx context.Context, name string) ([]string, error) {
	ext := path.Ext(name)
	// In these patterns the backslash of an escaped name is just that.
	pattern := strings.TrimSuffix(name, ext) + "*" + ext
	units, err := m.conn.ListUnitsByPatternsContext(ctx, nil, []string{pattern})
	if err != nil {
		return nil, fmt.Errorf("listing the instances of %s: %w", name, err)
	}
	var instances []string
	for _, unit := range units {
		if unit.LoadState != "not-found" {
			instances = append(instances, unit.Name)
		}
	}
	slices.Sort(instances)
	return instances, nil
}

// Exists tells whether a unit is loaded or has a file of its own; an instance
// is there when it is loaded, or enabled: that its template has a file means
// nothing, because then every instance would be there.
func (m *Manager) Exists(ctx context.Context, unit string) (bool, error) {
	if Template(unit) || instance(unit) {
		loaded, err := m.conn.ListUnitsByPatternsContext(ctx, nil, []string{unit})
		if err != nil {
			return false, fmt.Errorf("looking for %s: %w", unit, err)
		}
		for _, status := range loaded {
			if status.LoadState != "not-found" {
				return true, nil
			}
		}
		state, err := m.UnitFileState(ctx, unit)
		if Template(unit) {
			return state != "", err
		}
		return state == "enabled" || state == "enabled-runtime", err
	}
	property, err := m.conn.GetUnitPropertyContext(ctx, unit, "LoadState")
	if err != nil {
		if notFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("looking for %s: %w", unit, err)
	}
	state, _ := property.Value.Value().(string)
	return UnitState{LoadState: state}.Exists(), nil
}

// Triggers are the units that a socket, timer or path unit starts.
func (m *Manager) Triggers(ctx context.Context, unit string) ([]string, error) {
	return m.names(ctx, unit, "Triggers")
}

// names reads a property that lists units; of an unknown unit it is empty.
func (m *Manager) names(ctx context.Context, unit, property string) ([]string, error) {
	value, err := m.conn.GetUnitPropertyContext(ctx, unit, property)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking for %s= of %s: %w", property, unit, err)
	}
	names, _ := value.Value.Value().([]string)
	return names, nil
}

// View answers questions about the units of the running machine for a caller
// that cannot take an error with each answer: Err has them all at the end.
type View struct {
	ctx     context.Context
	manager *Manager
	errs    []error
}

// View asks within ctx.
func (m *Manager) View(ctx context.Context) *View { return &View{ctx: ctx, manager: m} }

// Exists is Manager.Exists.
func (v *View) Exists(unit string) bool {
	exists, err := v.manager.Exists(v.ctx, unit)
	v.note(err)
	return exists
}

// Instances is Manager.Instances.
func (v *View) Instances(template string) []string {
	instances, err := v.manager.Instances(v.ctx, template)
	v.note(err)
	return instances
}

// Triggers is Manager.Triggers.
func (v *View) Triggers(unit string) []string {
	units, err := v.manager.Triggers(v.ctx, unit)
	v.note(err)
	return units
}

// OnChange is X-Reconf-OnChange= of the unit as it is on disk: systemd names
// the files that it read for it.
func (v *View) OnChange(unit string) string {
	if Template(unit) {
		return ""
	}
	properties, err := v.manager.conn.GetUnitPropertiesContext(v.ctx, unit)
	if err != nil {
		if !notFound(err) {
			v.note(fmt.Errorf("asking for the files of %s: %w", unit, err))
		}
		return ""
	}
	files, _ := properties["DropInPaths"].([]string)
	var fragments [][]byte
	for _, file := range append([]string{text(properties["FragmentPath"])}, files...) {
		if file == "" {
			continue
		}
		fragment, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			v.note(fmt.Errorf("reading %s: %w", unit, err))
		}
		fragments = append(fragments, fragment)
	}
	return OnChange(fragments...)
}

func (v *View) note(err error) {
	if err != nil {
		v.errs = append(v.errs, err)
	}
}

// Err is what went wrong while answering.
func (v *View) Err() error { return errors.Join(v.errs...) }
