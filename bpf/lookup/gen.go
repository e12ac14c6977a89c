// Package lookup embeds the sk_lookup program that steers new connections inside a pod. The logic is in lookup.bpf.c; the Go code is written by bpf2go.
package lookup

//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Lookup lookup.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../include -I/usr/include/x86_64-linux-gnu
