//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Egress of kubelet's own cgroup. A connection of kubelet to a declared probe port that is not plain HTTP reaches the
 * application unjudged, and any pod can make kubelet send a request there (httpGet with that host and port). So only
 * that passes which the declared probe sends: nothing for tcpSocket, the preface of HTTP/2 first for gRPC, a TLS
 * handshake first for HTTPS.
 */
#include "lib.h"

#define IPPROTO_TCP 6
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define PASS 1
#define DROP 0 /* TCP takes the packet for lost */

char _license[] SEC("license") = "Dual BSD/GPL";

/* The packet's addresses and ports. Returns where its payload begins, or -1 for what cannot be read. */
static __always_inline int parse(struct __sk_buff *skb, struct mesh_flow_key *f)
{
	__u8 head[40], tcp[14];
	int at;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, head, 20) || head[9] != IPPROTO_TCP)
			return -1;
		put4(f->saddr, *(__u32 *)(head + 12));
		put4(f->daddr, *(__u32 *)(head + 16));
		at = (head[0] & 0xf) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) { /* with an extension header it is not kubelet's own work */
		if (bpf_skb_load_bytes(skb, 0, head, 40) || head[6] != IPPROTO_TCP)
			return -1;
		__builtin_memcpy(f->saddr, head + 8, 16);
		__builtin_memcpy(f->daddr, head + 24, 16);
		at = 40;
	} else {
		return -1;
	}
	if (bpf_skb_load_bytes(skb, at, tcp, sizeof(tcp)))
		return -1;
	f->sport = tcp[0] << 8 | tcp[1];
	f->dport = tcp[2] << 8 | tcp[3];
	return at + (tcp[12] >> 4) * 4;
}

/* Do the first bytes of the connection begin one of the probes in kinds? */
static __always_inline int begins(struct __sk_buff *skb, int at, __u32 kinds)
{
	static const __u8 preface[14] = "PRI * HTTP/2.0"; /* RFC 9113, 3.4; no request of HTTP/1 begins so */
	__u8 b[14];

	if (kinds & MESH_PORT_PROBE_TLS && !bpf_skb_load_bytes(skb, at, b, 2) && b[0] == 0x16 && b[1] == 3)
		return 1; /* RFC 8446, 5.1: a handshake record */
	if (!(kinds & MESH_PORT_PROBE_GRPC) || bpf_skb_load_bytes(skb, at, b, sizeof(b)))
		return 0;
	for (int i = 0; i < sizeof(b); i++)
		if (b[i] != preface[i])
			return 0;
	return 1;
}

/*
 * TCP sends a connection's first bytes first, and one packet of a socket after the other, so the first packet with
 * payload decides for good; a repetition finds the same answer.
 */
static __always_inline int judge(struct __sk_buff *skb, struct mesh_note *note)
{
	struct mesh_flow_key f = {};
	__u32 zero = 0, kinds = note->payload;
	const struct mesh_node *node;
	int at = parse(skb, &f);

	if (at >= 0 && (__u32)at >= skb->len)
		return PASS; /* no payload */
	if (kinds == MESH_PAYLOAD_ASK || kinds == MESH_PAYLOAD_SHUT)
		return DROP;
	if (at >= 0 && begins(skb, at, kinds)) {
		note->payload = 0;
		return PASS;
	}
	note->payload = MESH_PAYLOAD_SHUT;
	node = bpf_map_lookup_elem(&mesh_node, &zero);
	refused(node ? node->host_cookie : 0, &f, MESH_LAYER_EGRESS, MESH_VERDICT_DROP, MESH_REASON_PROBE_PAYLOAD, kinds);
	return DROP;
}

SEC("cgroup_skb/egress")
int mesh_kubelet(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct mesh_note *note;

	if (!sk)
		return PASS;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS; /* TIME_WAIT: it sends no payload */
	note = bpf_sk_storage_get(&mesh_notes, sk, 0, 0);
	if (!note || note->who != MESH_WHO_KUBELET || !note->payload)
		return PASS;
	return judge(skb, note);
}
