package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// limits are how many connections the worker takes at a time.
type limits struct {
	files    uint64 // descriptors that it may open
	conns    int    // of the node
	podConns int    // of one pod
}

const (
	// ownFiles are the descriptors for all but relays: about ten for each pod, tunnels, pipes. Half of a limit that is small.
	ownFiles     = 4096
	mostConns    = 200_000
	filesPerConn = 2 // of a relay: the client and the other side
	podShare     = 4 // no pod takes more than one connection in four
)

// raiseFiles makes the soft limit of descriptors the hard one, and returns the limits that follow from it.
func raiseFiles() (limits, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return limits{}, fmt.Errorf("read the limit of open files: %w", err)
	}
	if r.Cur < r.Max {
		r.Cur = r.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return limits{}, fmt.Errorf("raise the limit of open files to %d: %w", r.Max, err)
		}
	}
	return limitsFor(r.Cur)
}

// limitsFor divides files. It returns an error when that leaves no connection: the proxy would refuse everything.
func limitsFor(files uint64) (limits, error) {
	forConns := files - min(ownFiles, files/2)
	conns := int(min(forConns/filesPerConn, mostConns))
	if conns < podShare {
		return limits{}, fmt.Errorf("the limit of open files is %d: too low for any connection", files)
	}
	return limits{files: files, conns: conns, podConns: conns / podShare}, nil
}
