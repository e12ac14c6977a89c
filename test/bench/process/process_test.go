package process

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, pid := range Family(cmd.Process.Pid) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait() // it was killed
	}()
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		all := Family(cmd.Process.Pid)
		cpu, err := CPU(all)
		if err == nil && len(all) == 2 && cpu > 0 && RSS(all) > RSS(all[:1]) && RSS(all[:1]) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes, %v, %v", len(all), cpu, err)
		}
	}
	if !slices.Contains(Family(os.Getpid()), cmd.Process.Pid) {
		t.Error("a child of this process is not in its family")
	}
	if err := Pin(Family(cmd.Process.Pid), 0); err != nil {
		t.Error(err)
	}
}

func TestGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if _, err := CPU([]int{pid}); err == nil {
		t.Error("a process that ended has used CPU")
	}
	if kib := RSS([]int{pid}); kib != 0 {
		t.Errorf("it holds %v KiB", kib)
	}
}
