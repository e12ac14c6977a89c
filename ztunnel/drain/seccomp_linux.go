package drain

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data of linux/seccomp.h.
const (
	offsetNumber = 0
	offsetArch   = 4
)

// x32Bit marks system calls of the x32 ABI on amd64, which carry the amd64 architecture.
const x32Bit = 0x40000000

// architectures are the audit numbers (linux/audit.h) of the platforms we build for.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// RefuseBPF makes bpf(2) fail with EPERM in all threads of this process and its children, for good. System calls of other ABIs
// than the process's own fail likewise, since their numbers differ. It also sets no_new_privs. The worker has the capabilities
// to enter pods' namespaces, which are more than enough to rewrite the capture; this keeps a subverted worker from it.
func RefuseBPF() error {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("refuse bpf: no filter for architecture %s", runtime.GOARCH)
	}
	filter := bpfRefusal(arch)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("install seccomp filter: thread %d has another filter", r)
	}
	return nil
}

// bpfRefusal is the filter, in classic BPF; jumps count from the next instruction.
func bpfRefusal(arch uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetArch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch, Jf: 4}, // foreign ABI: refuse
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetNumber},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BPF, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
}
