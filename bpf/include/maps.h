/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's maps, one of each, shared by every hook; the loader replaces them by the pinned ones. */
#ifndef MESH_MAPS_H
#define MESH_MAPS_H

#include "mesh.h"
#include <bpf/bpf_helpers.h>

#define MESH_MAX_PODS 4096
#define MESH_MAX_FLOWS 131072
#define MESH_MAX_DIALS 16384
#define MESH_MAX_PORTS 65536
#define MESH_MAX_CIDRS 65536

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MAX_PODS);
	__type(key, __u64); /* netns cookie */
	__type(value, struct mesh_pod);
} mesh_pods SEC(".maps");

/* Entries of mesh_flows in use, beside mesh_pods so that user space can rewrite a pod without losing the count. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MAX_PODS);
	__type(key, __u64); /* netns cookie */
	__type(value, __u32); /* for an instant of two CPUs -1: compare it with its sign */
} mesh_usage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mesh_flow_key);
	__type(value, struct mesh_flow);
} mesh_flows SEC(".maps");

/*
 * ztunnel's own connections that are not in mesh_flows. They say only that a SYN on lo is not an application's; one that
 * was pushed out makes the proxy take its own connection once more, and dial again with a new entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MESH_MAX_DIALS);
	__type(key, struct mesh_flow_key);
	__type(value, struct mesh_flow);
} mesh_dials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MESH_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mesh_port_key);
	__type(value, __u32); /* enum mesh_port_flags */
} mesh_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MESH_MAX_CIDRS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct mesh_cidr_key);
	__type(value, __u32); /* enum mesh_cidr_flags */
} mesh_excluded SEC(".maps");

/* cgroup ids of ztunnel: a process in one of them or below is never captured. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u32);
} mesh_exempt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_node);
} mesh_node SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mesh_note);
} mesh_notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32); /* enum mesh_reason */
	__type(value, __u64);
} mesh_reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32); /* enum mesh_event */
	__type(value, __u64);
} mesh_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18); /* bytes */
} mesh_decisions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_meta);
} mesh_meta SEC(".maps");

#endif
