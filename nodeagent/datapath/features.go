package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// minKernel is the first with bpf_sk_lookup.ingress_ifindex, the newest thing that the programs cannot do without.
const minKernel = 5<<16 | 17<<8

// probe returns ErrUnsupported with what is missing.
func probe() error {
	v, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	if v < minKernel {
		return fmt.Errorf("kernel is %d.%d, the datapath needs 5.17 or newer: %w", v>>16, v>>8&0xff, ErrUnsupported)
	}
	for _, m := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.SockMap, ebpf.SkStorage, ebpf.RingBuf} {
		if err := features.HaveMapType(m); err != nil {
			return fmt.Errorf("BPF map type %s is missing (%w): %w", m, err, ErrUnsupported)
		}
	}
	for _, h := range []struct {
		prog   ebpf.ProgramType
		helper asm.BuiltinFunc
	}{
		{ebpf.CGroupSockAddr, asm.FnGetNetnsCookie},
		{ebpf.CGroupSockAddr, asm.FnSetsockopt},
		{ebpf.CGroupSockAddr, asm.FnSkStorageGet},
		{ebpf.CGroupSockopt, asm.FnGetNetnsCookie},
		{ebpf.SockOps, asm.FnGetNetnsCookie},
		{ebpf.SockOps, asm.FnSkStorageGet},
		{ebpf.SkLookup, asm.FnSkAssign},
		{ebpf.CGroupSKB, asm.FnSkStorageGet},
	} {
		if err := features.HaveProgramHelper(h.prog, h.helper); err != nil {
			return fmt.Errorf("BPF helper %s in %s programs is missing (%w): %w", h.helper, h.prog, err, ErrUnsupported)
		}
	}
	return nil
}
