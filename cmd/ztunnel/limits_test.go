package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestLimitsLeaveDescriptors(t *testing.T) {
	for _, c := range []struct {
		files          uint64
		conns, podConn int
	}{
		{math.MaxUint64, 200_000, 50_000}, {1 << 20, 200_000, 50_000}, {404_096, 200_000, 50_000}, {65_536, 30_720, 7_680},
		{20_000, 7_952, 1_988}, {4096, 1024, 256}, {1024, 256, 64}, {16, 4, 1},
	} {
		l, err := limitsFor(c.files)
		if err != nil || l.conns != c.conns || l.podConns != c.podConn {
			t.Errorf("%d files: %+v, %v, want %d connections, %d a pod", c.files, l, err, c.conns, c.podConn)
		}
		if uint64(l.conns)*filesPerConn >= c.files {
			t.Errorf("%d files: %d connections leave no descriptor", c.files, l.conns)
		}
	}
	for _, files := range []uint64{0, 1, 13} {
		if l, err := limitsFor(files); err == nil {
			t.Errorf("%d files: %+v", files, l)
		}
	}
}

func TestWorkerTakesWhatItsDescriptorsAllow(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", `ulimit -Sn 512 && ulimit -Hn 6000 && exec "$@"`, "sh", self, "--node-name=n1",
		"--zds="+filepath.Join(dir, "zds"), "--xds-addr=127.0.0.1:1", "--xds-root="+filepath.Join(dir, "root.pem"),
		"--token="+filepath.Join(dir, "token"), "--admin-addr="+freeAddr(t), "--stats-addr="+freeAddr(t), "--ready-addr="+freeAddr(t))
	p := launch(t, cmd)
	const want = `"msg":"limits","files":6000,"connections":1500,"connections_per_pod":375}`
	p.await(want, func() bool { return strings.Contains(p.out.String(), want) })
}
