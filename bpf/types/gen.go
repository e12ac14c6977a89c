// Package types holds the Go form of bpf/include/mesh.h, written by bpf2go. It has no programs.
package types

//go:generate go tool bpf2go -cc clang-19 -target bpfel -type mesh_layout -type mesh_mark -type mesh_who -type mesh_listener -type mesh_layer -type mesh_verdict -type mesh_reason -type mesh_event -type mesh_pod_flags -type mesh_port_flags -type mesh_cidr_flags -type mesh_seen -type mesh_pod -type mesh_node -type mesh_flow_key -type mesh_flow -type mesh_port_key -type mesh_cidr_key -type mesh_decision -type mesh_meta BPF types.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -I../include -I/usr/include/x86_64-linux-gnu
