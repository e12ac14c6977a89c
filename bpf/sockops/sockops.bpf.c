//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The flow table. A noted socket (judged leg, kubelet) writes its whole four-tuple before its SYN leaves; the
 * receiver's established socket consumes the entry, so the table holds handshakes only and a raw SYN on a live or
 * half-closed connection finds nothing. What no receiver of this node consumed goes when the sender closes.
 */
#include "lib.h"

#define EEXIST 17

char _license[] SEC("license") = "Dual BSD/GPL";

static __always_inline void flow_key(struct bpf_sock_ops *s, struct mesh_flow_key *f, int passive)
{
	__u8 *local = passive ? f->daddr : f->saddr, *remote = passive ? f->saddr : f->daddr;
	__u16 lport = s->local_port, rport = bpf_ntohl(s->remote_port);

	if (s->family == AF_INET) {
		__u32 l = s->local_ip4;
		asm volatile("" : "+r"(l)); /* or clang merges it with the IPv6 branch into one refused access */
		__u32 r = s->remote_ip4;
		asm volatile("" : "+r"(r));

		put4(local, l);
		put4(remote, r);
	} else {
		put6(local, s->local_ip6[0], s->local_ip6[1], s->local_ip6[2], s->local_ip6[3]);
		put6(remote, s->remote_ip6[0], s->remote_ip6[1], s->remote_ip6[2], s->remote_ip6[3]);
	}
	f->sport = passive ? rport : lport;
	f->dport = passive ? lport : rport;
}

/* Never below 0, where a pod was taken out and in again meanwhile: as an unsigned number that would be no budget. */
static __always_inline void give_back(__u64 cookie)
{
	__s32 *used = bpf_map_lookup_elem(&mesh_usage, &cookie);

	if (used && __sync_fetch_and_add(used, -1) <= 0)
		__sync_fetch_and_add(used, 1);
}

/* Of two that delete at once only one is told so: the budget is given back once. */
static __always_inline void forget(const struct mesh_flow_key *f, __u64 socket, enum mesh_event why)
{
	struct mesh_flow *flow = bpf_map_lookup_elem(&mesh_flows, f);
	__u64 cookie;

	if (!flow || (socket && flow->socket != socket))
		return;
	cookie = flow->cookie;
	if (bpf_map_delete_elem(&mesh_flows, f))
		return;
	give_back(cookie);
	event(why);
}

/* The number of entries that a namespace may hold; 0 when it may hold none. */
static __always_inline __u32 budget_of(__u64 cookie, __u32 who)
{
	const struct mesh_node *node;
	const struct mesh_pod *pod;
	__u32 zero = 0;

	if (who == MESH_WHO_LEG) {
		pod = bpf_map_lookup_elem(&mesh_pods, &cookie);
		return pod ? pod->budget : 0;
	}
	node = bpf_map_lookup_elem(&mesh_node, &zero);
	return node && node->host_cookie == cookie ? node->kubelet_budget : 0;
}

/* Puts the flow into the table, within the budget of its namespace; 0 if it may not. */
static __always_inline int record(const struct mesh_flow_key *f, const struct mesh_flow *flow)
{
	__s32 limit = budget_of(flow->cookie, flow->who), *used = bpf_map_lookup_elem(&mesh_usage, &flow->cookie);
	long err;

	if (!limit || !used)
		return 0;
	if (__sync_fetch_and_add(used, 1) >= limit) {
		give_back(flow->cookie);
		refused(flow->cookie, f, MESH_LAYER_SOCKOPS, MESH_VERDICT_UNKNOWN, MESH_REASON_FLOW_BUDGET, 0);
		return 0;
	}
	err = bpf_map_update_elem(&mesh_flows, f, flow, BPF_NOEXIST);
	if (err == -EEXIST) { /* the same tuple again before the old entry went */
		forget(f, 0, MESH_EVENT_FLOW_CLOSED);
		err = bpf_map_update_elem(&mesh_flows, f, flow, BPF_NOEXIST);
	}
	if (err) {
		give_back(flow->cookie);
		refused(flow->cookie, f, MESH_LAYER_SOCKOPS, MESH_VERDICT_UNKNOWN, MESH_REASON_FLOW_TABLE_FULL, 0);
		return 0;
	}
	return 1;
}

/* A connection of ztunnel that is not in the flow table. */
static __always_inline void forget_dial(const struct mesh_flow_key *f, __u64 socket)
{
	struct mesh_flow *flow = bpf_map_lookup_elem(&mesh_dials, f);

	if (flow && flow->socket == socket)
		bpf_map_delete_elem(&mesh_dials, f);
}

static __always_inline void connecting(struct bpf_sock_ops *s)
{
	struct bpf_sock *sk = s->sk;
	struct mesh_flow_key f = {};
	struct mesh_flow flow = {};
	struct mesh_note *note;

	if (!sk)
		return;
	note = bpf_sk_storage_get(&mesh_notes, sk, 0, 0);
	if (!note || (note->who != MESH_WHO_LEG && note->who != MESH_WHO_KUBELET && note->who != MESH_WHO_DIAL))
		return;
	flow.cookie = bpf_get_netns_cookie(s);
	flow.socket = bpf_get_socket_cookie(s);
	flow.who = note->who;
	flow_key(s, &f, 0);
	if (flow.who != MESH_WHO_DIAL && record(&f, &flow)) {
		if (flow.who == MESH_WHO_KUBELET)
			note->payload = MESH_PAYLOAD_ASK;
		event(MESH_EVENT_FLOW_ADDED);
	} else if (flow.who != MESH_WHO_KUBELET) { /* a leg without its entry is still ztunnel's own connection */
		note->who = MESH_WHO_DIAL;
		flow.who = MESH_WHO_DIAL;
		bpf_map_update_elem(&mesh_dials, &f, &flow, BPF_ANY);
	} else {
		return;
	}
	bpf_sock_ops_cb_flags_set(s, s->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/*
 * The sender is established; the receiver, on this node, not before our ACK, so its word is still in the entry. It tells
 * what kubelet may send. An entry that is gone was taken by somebody who is not the receiver: kubelet says nothing there.
 * An entry that no receiver of this node has seen serves nobody any more.
 */
static __always_inline void established(struct bpf_sock_ops *s)
{
	struct bpf_sock *sk = s->sk;
	struct mesh_flow_key f = {};
	struct mesh_note *note;
	struct mesh_flow *flow;
	__u64 socket;

	if (!sk)
		return;
	note = bpf_sk_storage_get(&mesh_notes, sk, 0, 0);
	if (!note || (note->who != MESH_WHO_LEG && note->who != MESH_WHO_DIAL && note->payload != MESH_PAYLOAD_ASK))
		return;
	flow_key(s, &f, 0);
	socket = bpf_get_socket_cookie(s);
	if (note->who == MESH_WHO_DIAL) {
		flow = bpf_map_lookup_elem(&mesh_dials, &f);
		if (flow && !flow->seen)
			forget_dial(&f, socket);
		return;
	}
	flow = bpf_map_lookup_elem(&mesh_flows, &f);
	if (note->who == MESH_WHO_KUBELET)
		note->payload = flow && flow->socket == socket ? flow->seen & ~MESH_SEEN : MESH_PAYLOAD_SHUT;
	if (flow && !flow->seen)
		forget(&f, socket, MESH_EVENT_FLOW_CLOSED);
}

SEC("sockops")
int mesh_sockops(struct bpf_sock_ops *s)
{
	struct mesh_flow_key f = {};

	switch (s->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(s);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(s);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		flow_key(s, &f, 1);
		forget(&f, 0, MESH_EVENT_FLOW_CONSUMED);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (s->args[1] == BPF_TCP_CLOSE) {
			flow_key(s, &f, 0);
			forget(&f, bpf_get_socket_cookie(s), MESH_EVENT_FLOW_CLOSED);
			forget_dial(&f, bpf_get_socket_cookie(s));
		}
		break;
	}
	return 1;
}
