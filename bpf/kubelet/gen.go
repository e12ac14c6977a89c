// Package kubelet embeds the egress hook of kubelet's cgroup, which bounds what a probe sends. The logic is in kubelet.bpf.c; the Go code is written by bpf2go.
package kubelet

//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Kubelet kubelet.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../include -I/usr/include/x86_64-linux-gnu
