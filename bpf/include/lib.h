/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counting, recording and address helpers of all hooks. */
#ifndef MESH_LIB_H
#define MESH_LIB_H

#include "maps.h"
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10

static __always_inline void count(void *map, __u32 i)
{
	__u64 *v = bpf_map_lookup_elem(map, &i);

	if (v)
		++*v;
}

static __always_inline void event(enum mesh_event e)
{
	count(&mesh_events, e);
}

/* Counts and records a refusal, or that a flow lost its standing. Every place that refuses calls it, once. */
static __always_inline void refused(__u64 cookie, const struct mesh_flow_key *f, enum mesh_layer layer,
				    enum mesh_verdict verdict, enum mesh_reason reason, __u32 detail)
{
	struct mesh_decision *d;

	count(&mesh_reasons, reason);
	d = bpf_ringbuf_reserve(&mesh_decisions, sizeof(*d), 0);
	if (!d) {
		event(MESH_EVENT_DECISION_LOST);
		return;
	}
	d->time = bpf_ktime_get_ns();
	d->cookie = cookie;
	d->generation = 0;
	__builtin_memcpy(d->saddr, f->saddr, 16);
	__builtin_memcpy(d->daddr, f->daddr, 16);
	d->sport = f->sport;
	d->dport = f->dport;
	d->reason = reason;
	d->layer = layer;
	d->verdict = verdict;
	d->policy = 0;
	d->rule = 0;
	d->detail = detail;
	d->pad = 0;
	bpf_ringbuf_submit(d, 0);
}

static __always_inline void put4(__u8 *to, __u32 addr)
{
	__u32 w[4] = { 0, 0, bpf_htonl(0xffff), addr };

	__builtin_memcpy(to, w, 16);
}

static __always_inline void put6(__u8 *to, __u32 a, __u32 b, __u32 c, __u32 d)
{
	__u32 w[4] = { a, b, c, d };

	__builtin_memcpy(to, w, 16);
}

static __always_inline int same_addr(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline int pod_ip(const struct mesh_pod *pod, const __u8 *addr)
{
	return same_addr(pod->ips[0], addr) || same_addr(pod->ips[1], addr) || same_addr(pod->ips[2], addr) ||
	       same_addr(pod->ips[3], addr);
}

/* 127/8 and 0.0.0.0 (v4-mapped), ::1 and ::. */
static __always_inline int loopback(const __u8 *addr)
{
	const __u32 *w = (const __u32 *)addr;

	if (w[0] || w[1])
		return 0;
	if (w[2] == bpf_htonl(0xffff))
		return addr[12] == 127 || !w[3];
	return !w[2] && (!w[3] || w[3] == bpf_htonl(1));
}

static __always_inline int mapped4(const __u8 *addr)
{
	const __u32 *w = (const __u32 *)addr;

	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline int link_local6(const __u8 *addr)
{
	return addr[0] == 0xfe && (addr[1] & 0xc0) == 0x80;
}

static __always_inline __u32 port_flags(__u64 cookie, __u16 port)
{
	struct mesh_port_key k = { .cookie = cookie, .port = port };
	__u32 *v = bpf_map_lookup_elem(&mesh_ports, &k);

	return v ? *v : 0;
}

#endif
