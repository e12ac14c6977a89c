package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a process that the bench started, with a control door.
type child struct {
	doors
	dir string // where it says its doors, and what else it has to say
	cmd *exec.Cmd
}

// startChild runs the program, "" is this one, with more in its environment, and waits until file in dir says its doors.
func startChild(ctx context.Context, program, dir, file string, env ...string) (_ *child, err error) {
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find program: %w", err)
		}
	}
	c := &child{dir: dir, cmd: exec.Command(program)}
	c.cmd.Env = append(append(os.Environ(), dirEnv+"="+dir), env...)
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	err = until(ctx, 10*time.Minute, func() error {
		raw, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &c.doors)
	})
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("wait for doors: %w", err)
	}
	return c, nil
}

func (c *child) stop() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// controller is the process under test.
type controller struct {
	*child
	api  *http.Server
	took time.Duration // from the start of the process to readiness
}

// start runs the program as the controller of the world and waits until it is ready; "" is this one.
func start(ctx context.Context, w *world, program string) (_ *controller, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	c := &controller{api: &http.Server{Handler: w.api}}
	go func() { _ = c.api.Serve(l) }()
	dir, err := os.MkdirTemp("", "bench-controller-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make directory: %w", err), c.api.Close())
	}
	begin := time.Now()
	if c.child, err = startChild(ctx, program, dir, doorsFile, serveEnv+"=http://"+l.Addr().String()); err != nil {
		return nil, errors.Join(err, c.api.Close(), os.RemoveAll(dir))
	}
	if err := until(ctx, 10*time.Minute, func() error { return c.ask(ctx, "/ready", nil) }); err != nil {
		c.stop()
		return nil, fmt.Errorf("wait for controller: %w", err)
	}
	c.took = time.Since(begin)
	return c, nil
}

// stop ends the process and what it had.
func (c *controller) stop() {
	c.child.stop()
	_ = c.api.Close()
	_ = os.RemoveAll(c.dir)
}

// until asks every 10 ms until f returns nil, and returns its last error after the limit.
func until(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// ask reads a page of the control door; out may be nil.
func (c *child) ask(ctx context.Context, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Control+path, nil)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("ask for %s: %s: %s", path, resp.Status, strings.TrimSpace(string(text)))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("ask for %s: %w", path, err)
	}
	return nil
}

func (c *controller) usage(ctx context.Context) (u usage, err error) {
	return u, c.ask(ctx, "/usage", &u)
}

// memory is VmRSS and VmHWM of the process, in bytes.
func (c *child) memory() (now, peak int64, err error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid), "status"))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory: %w", err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		name, value, _ := strings.Cut(in.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			peak = kib << 10
		}
	}
	if now == 0 || peak == 0 {
		return 0, 0, errors.New("read memory: no VmRSS or VmHWM")
	}
	return now, peak, in.Err()
}
