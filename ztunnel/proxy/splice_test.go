package proxy

import (
	"bytes"
	"io"
	"syscall"
	"testing"
)

// Out of descriptors a bulk relay goes on by copying.
func TestRelayWithoutPipesCopies(t *testing.T) {
	c, srv, s, wait := relayed(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(srv)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
	_ = srv.CloseWrite()
	if err := wait(); err != nil {
		t.Error(err)
	}
	if n := len(s.p.pipes.idle); n != 0 {
		t.Errorf("%d pipes were made", n)
	}
}
