// Package sockops embeds the socket operations hook that keeps the flow table. The logic is in sockops.bpf.c; the Go code is written by bpf2go.
package sockops

//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Sockops sockops.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../include -I/usr/include/x86_64-linux-gnu
