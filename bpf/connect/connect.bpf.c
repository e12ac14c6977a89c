//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Outbound capture. connect4 and connect6 put the capture mark on a pod's TCP sockets and rewrite nothing; setsockopt
 * keeps them captured while a SYN is in flight.
 */
#include "lib.h"

#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SO_MARK 36
#define SO_BINDTOIFINDEX 62
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

#define ALLOW 1
#define REFUSE 0 /* EPERM */

#define SHOWN 4096 /* bytes of an option's value that every kernel shows: the smallest page */

char _license[] SEC("license") = "Dual BSD/GPL";

/* Is this process in an exempt cgroup, or below one? Level 0 is the root, which every process is below. */
static __always_inline int exempt(void)
{
	__u64 id;

	for (int level = 1; level < MESH_CGROUP_DEPTH; level++) {
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			return 0;
		if (bpf_map_lookup_elem(&mesh_exempt, &id))
			return 1;
	}
	return 0;
}

static __always_inline int below(__u64 cgroup)
{
	__u64 id;

	for (int level = 1; level < MESH_CGROUP_DEPTH; level++) {
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			return 0;
		if (id == cgroup)
			return 1;
	}
	return 0;
}

/*
 * Returns 0 if there is no memory. A leg or a probe that is not noted is an unknown flow, which the receiver captures:
 * safe, and still connected.
 */
static __always_inline int note(struct bpf_sock *sk, __u64 cookie, const struct mesh_flow_key *f, __u32 who)
{
	struct mesh_note *n = bpf_sk_storage_get(&mesh_notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (n)
		*n = (struct mesh_note){ .who = who };
	else
		refused(cookie, f, MESH_LAYER_CONNECT, who == MESH_WHO_DIAL ? MESH_VERDICT_REFUSE : MESH_VERDICT_UNKNOWN,
			MESH_REASON_STORAGE_EXHAUSTED, 0);
	return n != 0;
}

/* Overwrites the note of an earlier connection of this socket. Creating one costs 0.7 us, so it is not created. */
static __always_inline void renote(struct bpf_sock *sk, __u32 who)
{
	struct mesh_note *n = bpf_sk_storage_get(&mesh_notes, sk, 0, 0);

	if (n)
		*n = (struct mesh_note){ .who = who };
}

static __always_inline int refuse(__u64 cookie, const struct mesh_flow_key *f, enum mesh_reason reason)
{
	refused(cookie, f, MESH_LAYER_CONNECT, MESH_VERDICT_REFUSE, reason, 0);
	return REFUSE;
}

/* Puts the mesh's bits of the mark to bits and leaves all others. */
static __always_inline int set_bits(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct mesh_node *node, __u32 bits)
{
	__u32 old = sk->mark, mark = (old & ~node->mask) | bits;

	if (mark == old)
		return 0;
	return bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static __always_inline int excluded(const struct mesh_pod *pod, const struct mesh_flow_key *f)
{
	struct mesh_cidr_key k = { .prefix_len = 64 + 128 };
	__u32 flags = port_flags(pod->cookie, f->dport), *cidr;

	if (flags & MESH_PORT_EXCLUDE_OUT)
		return 1;
	if (flags & MESH_PORT_INCLUDE_OUT)
		return 0;
	__builtin_memcpy(k.cookie, &pod->cookie, 8);
	__builtin_memcpy(k.addr, f->daddr, 16);
	cidr = bpf_map_lookup_elem(&mesh_excluded, &k);
	if (cidr && *cidr & (mapped4(f->daddr) ? MESH_CIDR_IPV4 : MESH_CIDR_IPV6))
		return !(*cidr & MESH_CIDR_INCLUDE);
	return pod->flags & MESH_POD_INCLUDE_ONLY;
}

static __always_inline int capture(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct mesh_node *node,
				   const struct mesh_pod *pod, const struct mesh_flow_key *f)
{
	int any = 0;

	if (set_bits(ctx, sk, node, node->mark))
		return refuse(pod->cookie, f, MESH_REASON_MARK_FAILED); /* unmarked it would leave in plaintext */
	/* A device-bound socket does not match the route over lo. */
	if (sk->bound_dev_if && bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &any, sizeof(any)))
		return refuse(pod->cookie, f, MESH_REASON_BOUND_DEVICE);
	renote(sk, MESH_WHO_CAPTURED);
	event(MESH_EVENT_CAPTURED);
	return ALLOW;
}

/*
 * A leg that ztunnel says it judged is noted for the receiver. Any other connection to an address that is not the pod's
 * is noted for mesh_lookup: the address may still be local here (on lo, say), and the SYN come back as if captured.
 */
static __always_inline int exempt_connect(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct mesh_pod *pod,
					  const struct mesh_flow_key *f, __u32 protocol)
{
	__u32 mark = sk->mark;

	if (protocol != IPPROTO_TCP) {
		renote(sk, MESH_WHO_NONE);
		return ALLOW;
	}
	if (!(mark & MESH_MARK_JUDGED)) {
		if (!loopback(f->daddr) && !pod_ip(pod, f->daddr))
			return note(sk, pod->cookie, f, MESH_WHO_DIAL) ? ALLOW : REFUSE;
		renote(sk, MESH_WHO_NONE);
		return ALLOW;
	}
	mark &= ~MESH_MARK_JUDGED;
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return refuse(pod->cookie, f, MESH_REASON_MARK_FAILED);
	note(sk, pod->cookie, f, MESH_WHO_LEG);
	return ALLOW;
}

static __always_inline int pod_connect(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct mesh_node *node,
				       const struct mesh_pod *pod, const struct mesh_flow_key *f, __u32 protocol)
{
	if (exempt()) {
		event(MESH_EVENT_EXEMPT);
		return exempt_connect(ctx, sk, pod, f, protocol);
	}
	if ((protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) && pod->flags & MESH_POD_CAPTURE_OUT && !loopback(f->daddr) && !link_local6(f->daddr) &&
	    !pod_ip(pod, f->daddr) && !excluded(pod, f))
		return capture(ctx, sk, node, pod, f);
	renote(sk, MESH_WHO_NONE);
	if (set_bits(ctx, sk, node, 0))
		return refuse(pod->cookie, f, MESH_REASON_MARK_FAILED); /* with a stale mark it would be looped to lo */
	event(MESH_EVENT_STRIPPED);
	return ALLOW;
}

static __always_inline int connecting(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u64 cookie,
				      const struct mesh_flow_key *f, __u32 protocol)
{
	const struct mesh_pod *pod = bpf_map_lookup_elem(&mesh_pods, &cookie);
	const struct mesh_node *node;
	__u32 zero = 0;

	if (!sk)
		return ALLOW;
	node = bpf_map_lookup_elem(&mesh_node, &zero);
	if (!node)
		return ALLOW; /* an array always has its element */
	if (pod)
		return pod_connect(ctx, sk, node, pod, f, protocol);
	if (cookie == node->host_cookie && protocol == IPPROTO_TCP && node->kubelet_cgroup) {
		if (below(node->kubelet_cgroup))
			note(sk, cookie, f, MESH_WHO_KUBELET);
		else
			renote(sk, MESH_WHO_NONE);
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int mesh_connect4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk; /* read once: merged later reads become an access that the verifier refuses */
	__u32 addr = ctx->user_ip4;
	struct mesh_flow_key f = {};

	put4(f.daddr, addr);
	f.dport = bpf_ntohs((__u16)ctx->user_port);
	return connecting(ctx, sk, bpf_get_netns_cookie(ctx), &f, ctx->protocol);
}

SEC("cgroup/connect6")
int mesh_connect6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2], d = ctx->user_ip6[3];
	struct mesh_flow_key f = {};

	put6(f.daddr, a, b, c, d);
	f.dport = bpf_ntohs((__u16)ctx->user_port);
	return connecting(ctx, sk, bpf_get_netns_cookie(ctx), &f, ctx->protocol);
}

/*
 * connect() marks the socket, but a SYN that got no answer is sent again later. Two options in between would send the
 * repetition round the mesh. An application's SO_MARK keeps the mesh's bits as the connect hook left them. Binding a
 * captured connection to a device is refused with EPERM: IPv4 takes every destination of a bound socket for on-link
 * when its rules lead nowhere, so no route can stop it.
 * The mark is on a subflow of a multipath socket, which this hook does not see; the kernel copies the option over it.
 * So both are refused, unless the socket is closed.
 */
static __always_inline int set_option(struct bpf_sockopt *ctx, struct bpf_sock *sk, const struct mesh_node *node)
{
	__u32 *value = ctx->optval;

	if (sk->protocol == IPPROTO_MPTCP && sk->state != BPF_TCP_CLOSE)
		return REFUSE;
	if (ctx->optname != SO_MARK)
		return sk->state == BPF_TCP_CLOSE || (sk->mark & node->mask) != node->mark ? ALLOW : REFUSE;
	if ((void *)(value + 1) <= ctx->optval_end)
		*value = (*value & ~node->mask) | (sk->mark & node->mask);
	return ALLOW;
}

SEC("cgroup/setsockopt")
int mesh_setsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct mesh_node *node;
	__u32 zero = 0;
	__u64 cookie;

	/*
	 * The kernel shows a page of a longer value and refuses the call unless optlen is made 0, which means the caller's own
	 * buffer. A short value is left as it is: it may be another program's work.
	 */
	if (ctx->optlen > SHOWN)
		ctx->optlen = 0;
	if (ctx->level != SOL_SOCKET || !sk ||
	    (ctx->optname != SO_MARK && ctx->optname != SO_BINDTODEVICE && ctx->optname != SO_BINDTOIFINDEX))
		return ALLOW;
	cookie = bpf_get_netns_cookie(ctx);
	node = bpf_map_lookup_elem(&mesh_node, &zero);
	if (!node || !bpf_map_lookup_elem(&mesh_pods, &cookie) || exempt())
		return ALLOW;
	return set_option(ctx, sk, node);
}
