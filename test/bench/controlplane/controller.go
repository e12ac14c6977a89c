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

// controller is the process under test.
type controller struct {
	doors
	dir  string
	cmd  *exec.Cmd
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
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.dir, err = os.MkdirTemp("", "bench-controller-"); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find program: %w", err)
		}
	}
	c.cmd = exec.Command(program)
	c.cmd.Env = append(os.Environ(), serveEnv+"=http://"+l.Addr().String(), dirEnv+"="+c.dir)
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := c.cmd.Start(); err != nil {
		c.cmd = nil
		return nil, fmt.Errorf("start controller: %w", err)
	}
	err = until(ctx, 10*time.Minute, func() error {
		raw, err := os.ReadFile(filepath.Join(c.dir, doorsFile))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, &c.doors); err != nil {
			return err
		}
		return c.ask("/ready", nil)
	})
	if err != nil {
		return nil, fmt.Errorf("wait for controller: %w", err)
	}
	c.took = time.Since(begin)
	return c, nil
}

// stop ends the process and what it had.
func (c *controller) stop() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
	_ = c.api.Close()
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
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
func (c *controller) ask(path string, out any) error {
	resp, err := http.Get(c.Control + path)
	if err != nil {
		return fmt.Errorf("ask controller: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("ask controller for %s: %s: %s", path, resp.Status, strings.TrimSpace(string(text)))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("ask controller for %s: %w", path, err)
	}
	return nil
}

func (c *controller) usage() (u usage, err error) { return u, c.ask("/usage", &u) }

// memory is VmRSS and VmHWM of the process, in bytes.
func (c *controller) memory() (now, peak int64, err error) {
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
