//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Steering inside a pod, one instance for each pod's namespace: which listener gets a new connection. Runs for every
 * SYN that finds no established socket (and for the ACK of a SYN cookie).
 */
#include "lib.h"

#define IPPROTO_TCP 6
#define LO_IFINDEX 1

char _license[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_pod);
} mesh_config SEC(".maps");

/* By sizes: with BTF types the kernel refuses a SOCKMAP, the loader tries again, and the free waits for RCU. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MESH_LISTENER_COUNT);
	__uint(key_size, 4);
	__uint(value_size, 8);
} mesh_listeners SEC(".maps");

static __always_inline void flow_key(struct bpf_sk_lookup *ctx, struct mesh_flow_key *f)
{
	if (ctx->family == AF_INET) {
		__u32 l = ctx->local_ip4;
		asm volatile("" : "+r"(l)); /* see sockops.bpf.c */
		__u32 r = ctx->remote_ip4;
		asm volatile("" : "+r"(r));

		put4(f->daddr, l);
		put4(f->saddr, r);
	} else {
		put6(f->daddr, ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]);
		put6(f->saddr, ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]);
	}
	f->sport = bpf_ntohs(ctx->remote_port);
	f->dport = ctx->local_port;
}

static __always_inline int own_port(const struct mesh_pod *pod, __u16 port)
{
	return port && (port == pod->own_ports[0] || port == pod->own_ports[1] || port == pod->own_ports[2] ||
			port == pod->own_ports[3]);
}

/*
 * What to do, in one word: the listener to give the connection to (GIVE), or the reason of a drop (DROP), and otherwise
 * nothing; with the event to count. One word, so that the code of each outcome exists, and is verified, once.
 */
#define GIVE (1u << 31)
#define DROP (1u << 30)
#define give(slot, what) (GIVE | (what) << 8 | (slot))
#define drop(reason) (DROP | (reason))
#define pass(what) ((what) << 8)

/*
 * kubelet's request of a declared probe port. HTTP is judged by the proxy. Any other probe needs the application's own
 * answer, so the connection passes, and the sender's side is told what may be sent on it: see bpf/kubelet.
 */
static __always_inline __u32 probe(struct mesh_flow *flow, __u32 flags)
{
	__u32 kinds = flags & (MESH_PORT_PROBE | MESH_PORT_PROBE_GRPC | MESH_PORT_PROBE_TLS);

	/* In one store: without the kinds the entry would allow everything. */
	flow->seen = flags & MESH_PORT_PROBE_HTTP ? MESH_SEEN : MESH_SEEN | kinds;
	if (flags & MESH_PORT_PROBE_HTTP)
		return give(MESH_LISTENER_PROBE, MESH_EVENT_PROBE);
	return pass(MESH_EVENT_PROBE_PASSED);
}

/* Is it a connection of ztunnel from this pod, as map knows it? */
static __always_inline int dialled(void *map, const struct mesh_pod *pod, const struct mesh_flow_key *f)
{
	struct mesh_flow *flow = bpf_map_lookup_elem(map, f);

	if (!flow || flow->cookie != pod->cookie)
		return 0;
	flow->seen = MESH_SEEN;
	return 1;
}

/* A connection from outside this pod. */
static __always_inline __u32 inbound(const struct mesh_pod *pod, const struct mesh_flow_key *f)
{
	struct mesh_flow *flow;
	__u32 flags;

	if (f->dport == pod->tunnel_port)
		return give(MESH_LISTENER_TUNNEL, MESH_EVENT_TUNNEL);
	flags = port_flags(pod->cookie, f->dport);
	if (flags & MESH_PORT_EXCLUDE_IN)
		return pass(MESH_EVENT_EXCLUDED);
	flow = bpf_map_lookup_elem(&mesh_flows, f);
	if (flow && flow->who == MESH_WHO_LEG) {
		flow->seen = MESH_SEEN;
		return pass(MESH_EVENT_LEG_PASSED);
	}
	if (flow && flow->who == MESH_WHO_KUBELET && flags & MESH_PORT_PROBE)
		return probe(flow, flags);
	return give(MESH_LISTENER_INBOUND, MESH_EVENT_INBOUND);
}

static __always_inline __u32 decide(const struct mesh_pod *pod, const struct mesh_flow_key *f, int from_lo)
{
	/*
	 * What is looped to the pod's own address has eth0 for its interface, so lo means: 127.0.0.1, ztunnel's delivery
	 * (bound to lo), a captured connection, or ztunnel's own to an address that the pod has and we do not know (ip
	 * addr add ADDRESS dev lo). The last must not be captured again: ztunnel would dial without end. A SYN off the wire with the pod's own source is dropped by the kernel
	 * (IPv4), or its answer never gets there.
	 */
	int local = pod_ip(pod, from_lo ? f->daddr : f->saddr) || (from_lo && loopback(f->daddr));

	if (from_lo && !local) {
		if (!dialled(&mesh_dials, pod, f) && !dialled(&mesh_flows, pod, f))
			return give(MESH_LISTENER_OUTBOUND, MESH_EVENT_OUTBOUND);
		local = 1;
	}
	if (own_port(pod, f->dport))
		return drop(MESH_REASON_LOOP_PORT); /* the proxy would connect to itself */
	return local ? pass(MESH_EVENT_OWN_PASSED) : inbound(pod, f);
}

/* Gives the connection to the listener, or says why not. */
static __always_inline __u32 assign(struct bpf_sk_lookup *ctx, __u32 slot)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&mesh_listeners, &slot);
	long err;

	if (!sk)
		return MESH_REASON_LISTENER_MISSING; /* nobody would judge it: closed, not open */
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? MESH_REASON_ASSIGN_FAILED : MESH_REASON_NONE;
}

SEC("sk_lookup")
int mesh_lookup(struct bpf_sk_lookup *ctx)
{
	__u32 zero = 0, todo = drop(MESH_REASON_CONFIG_MISSING), slot = 0, reason = MESH_REASON_NONE;
	struct mesh_flow_key f = {};
	const struct mesh_pod *pod;
	__u64 cookie = 0;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	flow_key(ctx, &f);
	pod = bpf_map_lookup_elem(&mesh_config, &zero);
	if (pod && pod->cookie) {
		cookie = pod->cookie;
		todo = decide(pod, &f, ctx->ingress_ifindex == LO_IFINDEX);
	}
	if (todo & GIVE) {
		slot = todo & 0xff;
		reason = assign(ctx, slot);
	} else if (todo & DROP) {
		reason = todo & 0xff;
	}
	if (reason != MESH_REASON_NONE) {
		refused(cookie, &f, MESH_LAYER_LOOKUP, MESH_VERDICT_DROP, reason, slot);
		return SK_DROP;
	}
	event(todo >> 8 & 0xff);
	return SK_PASS;
}
