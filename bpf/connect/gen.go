// Package connect embeds the connect4, connect6 and setsockopt hooks of outbound capture. The logic is in connect.bpf.c; the Go code is written by bpf2go.
package connect

//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types Connect connect.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../include -I/usr/include/x86_64-linux-gnu
