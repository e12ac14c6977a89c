package drain

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// roleVar makes the test binary act as one of the processes that the tests start.
const roleVar = "DRAIN_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "status":
		os.Exit(7)
	case "wait":
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		fmt.Println("up")
		<-terminated
		os.Exit(0)
	case "lifeline":
		fmt.Println("up")
		<-Lifeline(os.NewFile(LifelineFD, "lifeline"))
		os.Exit(0)
	case "bpf":
		os.Exit(tryBPF())
	default:
		panic("unknown role " + role)
	}
}

// tryBPF asks for a bpf(2) that no kernel can answer otherwise than with E2BIG, before and after the filter, from several threads.
func tryBPF() int {
	ask := func() error {
		_, _, errno := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(new([8]byte))), 1<<20)
		return errno
	}
	if err := ask(); !errors.Is(err, unix.E2BIG) {
		fmt.Println("before:", err)
		return 3
	}
	// Threads that exist before the filter must have it too.
	const threads = 4
	begin, answers := make(chan struct{}), make(chan error, threads)
	for range threads {
		ready := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(ready)
			<-begin
			answers <- ask()
		}()
		<-ready
	}
	if err := RefuseBPF(); err != nil {
		fmt.Println(err)
		return 4
	}
	close(begin)
	for range threads {
		if err := <-answers; !errors.Is(err, unix.EPERM) {
			fmt.Println("after:", err)
			return 5
		}
	}
	// Nothing else is refused: a process can still be started and a file read.
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		fmt.Println(err)
		return 6
	}
	// The 32-bit numbering of amd64 does not go round the filter.
	if runtime.GOARCH == "amd64" {
		if _, _, errno := unix.RawSyscall(x32Bit|unix.SYS_BPF, 0, 0, 0); errno != unix.EPERM {
			fmt.Println("x32:", errno)
			return 8
		}
	}
	return 0
}
