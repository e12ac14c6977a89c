/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Types shared by every hook and, through bpf/types, by Go. A change of a struct, of the meaning of a field, or of a
 * map's shape raises MESH_LAYOUT_CURRENT: pinned maps of another layout are never adopted.
 * Addresses are 16 bytes, IPv4 in its v4-mapped form (netip.Addr.As16). Ports are in host order.
 */
#ifndef MESH_H
#define MESH_H

#include <linux/bpf.h>
#include <linux/types.h>

enum mesh_layout {
	MESH_LAYOUT_CURRENT = 1,
};

enum mesh_mark {
	/*
	 * ztunnel's word that it judged the connection: SO_MARK before connect() of a leg. The hook takes the bit away before
	 * a packet carries it, and believes it of exempt processes only. Without it the receiver judges the connection itself.
	 */
	MESH_MARK_JUDGED = 0x1000,
	MESH_MARK_COUNT,
};

/* What the connect hook knows of a socket. A socket without a note is MESH_WHO_NONE: any other process. */
enum mesh_who {
	MESH_WHO_NONE,
	MESH_WHO_CAPTURED, /* an application's socket that carries the capture mark */
	MESH_WHO_LEG,      /* ztunnel's socket in a pod's namespace: the connection was judged */
	MESH_WHO_KUBELET,  /* kubelet's cgroup in the node's namespace */
	MESH_WHO_DIAL,     /* ztunnel's socket in a pod's namespace, not judged, to an address that is not the pod's */
	MESH_WHO_COUNT,
};

/* Slots of mesh_listeners. */
enum mesh_listener {
	MESH_LISTENER_OUTBOUND,
	MESH_LISTENER_INBOUND,
	MESH_LISTENER_TUNNEL,
	MESH_LISTENER_PROBE,
	MESH_LISTENER_COUNT,
};

enum mesh_layer {
	MESH_LAYER_CONNECT = 1,
	MESH_LAYER_LOOKUP = 2,
	MESH_LAYER_SOCKOPS = 3,
	MESH_LAYER_EGRESS = 4, /* kubelet's own cgroup */
	MESH_LAYER_COUNT,
};

enum mesh_verdict {
	MESH_VERDICT_REFUSE = 1, /* the caller's connect() fails with EPERM */
	MESH_VERDICT_DROP = 2,   /* the SYN is dropped: RST where the destination is the pod's own address */
	MESH_VERDICT_UNKNOWN = 3, /* a judged leg or probe goes on as an unknown flow, to the plaintext listener */
	MESH_VERDICT_COUNT,
};

/*
 * The kernel's reasons. Numbers are never used again; the names of the same numbers are in controller/api/reason, where
 * the kernel's are below 64.
 */
enum mesh_reason {
	MESH_REASON_NONE = 0,
	MESH_REASON_LISTENER_MISSING = 1,  /* nobody holds the listener of the slot in detail */
	MESH_REASON_CONFIG_MISSING = 2,    /* the pod's configuration is not there */
	MESH_REASON_LOOP_PORT = 3,         /* the destination is a port of the mesh inside the pod */
	MESH_REASON_ASSIGN_FAILED = 4,     /* the kernel refused the listener of the slot in detail */
	MESH_REASON_FLOW_BUDGET = 5,       /* the pod's entries of mesh_flows are used up */
	MESH_REASON_STORAGE_EXHAUSTED = 6, /* no memory for a socket's note */
	MESH_REASON_MARK_FAILED = 7,       /* the capture mark could not be set or cleared */
	MESH_REASON_BOUND_DEVICE = 8,      /* bound to a device, and this kernel cannot undo that in the hook */
	MESH_REASON_FLOW_TABLE_FULL = 9,
	MESH_REASON_PROBE_PAYLOAD = 10,    /* kubelet sent what no probe of the port sends; MESH_PORT_PROBE bits in detail */
	MESH_REASON_COUNT,
};

/* Counted, never a refusal. */
enum mesh_event {
	MESH_EVENT_CAPTURED,
	MESH_EVENT_STRIPPED,      /* the mesh's mark bits taken from a socket, or left off: not captured */
	MESH_EVENT_EXEMPT,        /* ztunnel's own connect */
	MESH_EVENT_FLOW_ADDED,
	MESH_EVENT_FLOW_CONSUMED, /* by the receiver's established socket */
	MESH_EVENT_FLOW_CLOSED,   /* never consumed; deleted at close */
	MESH_EVENT_OUTBOUND,
	MESH_EVENT_INBOUND,
	MESH_EVENT_TUNNEL,
	MESH_EVENT_PROBE,         /* a kubelet probe steered to the probe listener */
	MESH_EVENT_PROBE_PASSED,
	MESH_EVENT_LEG_PASSED,    /* a judged leg recognised */
	MESH_EVENT_OWN_PASSED,    /* from or to the pod's own address, or ztunnel's delivery over lo */
	MESH_EVENT_EXCLUDED,      /* an excluded inbound port */
	MESH_EVENT_DECISION_LOST, /* the ring buffer was full: counted per reason, but no record */
	MESH_EVENT_COUNT,
};

enum mesh_pod_flags {
	MESH_POD_CAPTURE_OUT = 1,
	MESH_POD_INCLUDE_ONLY = 2, /* what no entry of mesh_excluded covers is not captured */
};

/* Value bits of mesh_ports. */
enum mesh_port_flags {
	MESH_PORT_EXCLUDE_OUT = 1,
	MESH_PORT_INCLUDE_OUT = 2, /* captured whatever CIDR is excluded */
	MESH_PORT_EXCLUDE_IN = 4,
	MESH_PORT_PROBE = 8,       /* declared for a kubelet probe or hook */
	MESH_PORT_PROBE_HTTP = 16, /* and that probe speaks HTTP */
	MESH_PORT_PROBE_GRPC = 32, /* plain HTTP/2 */
	MESH_PORT_PROBE_TLS = 64,  /* HTTPS: nothing to see inside */
};

/* Bits of mesh_flow.seen beside those of the probe port (enum mesh_port_flags). */
enum mesh_seen {
	MESH_SEEN = 1, /* a receiver on this node found the entry */
};

/*
 * mesh_note.payload, what a socket of kubelet may send: anything (0), the first bytes of one of the probes whose
 * MESH_PORT_PROBE bits are set, or else:
 */
enum mesh_payload {
	MESH_PAYLOAD_ASK = 1, /* nothing yet: the receiver has not been heard of */
	MESH_PAYLOAD_SHUT = 2, /* nothing ever */
};

/*
 * Value bits of mesh_excluded: the family of the prefix. A short IPv6 prefix also covers the v4-mapped range in the trie,
 * and must not speak for it. 1 is what builds before this meaning wrote: it speaks for nobody.
 */
enum mesh_cidr_flags {
	MESH_CIDR_IPV4 = 2,
	MESH_CIDR_IPV6 = 4,
	MESH_CIDR_INCLUDE = 8, /* captured: the longest prefix decides */
};

#define MESH_POD_IPS 4
#define MESH_POD_OWN_PORTS 4
#define MESH_CGROUP_DEPTH 32

/* Per pod: value of mesh_pods and of the pod's own mesh_config. */
struct mesh_pod {
	__u64 cookie;               /* network namespace */
	__u32 flags;                /* enum mesh_pod_flags */
	__u32 budget;               /* entries of mesh_flows that this pod may hold */
	__u8 ips[MESH_POD_IPS][16]; /* unused ones are zero */
	__u16 own_ports[MESH_POD_OWN_PORTS]; /* the mesh's ports that nobody may ask for; unused ones are zero */
	__u16 tunnel_port;
	__u16 pad[3];
};
_Static_assert(sizeof(struct mesh_pod) == 96, "mesh_pod");

/* One for the node: mesh_node[0]. */
struct mesh_node {
	__u64 host_cookie;
	__u64 kubelet_cgroup; /* 0: none known */
	__u32 mark;           /* capture mark */
	__u32 mask;           /* mark bits that belong to the mesh */
	__u32 kubelet_budget;
	__u32 pad;
};
_Static_assert(sizeof(struct mesh_node) == 32, "mesh_node");

struct mesh_flow_key {
	__u8 saddr[16] __attribute__((aligned(8))); /* compared by 8 bytes on the stack */
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u32 pad;
};
_Static_assert(sizeof(struct mesh_flow_key) == 40, "mesh_flow_key");

struct mesh_flow {
	__u64 cookie; /* network namespace of the sender */
	__u64 socket; /* socket cookie of the sender */
	__u32 who;    /* enum mesh_who */
	__u32 seen;   /* what the receiver's sk_lookup says of it: enum mesh_seen and the port's probe bits; 0: none yet */
};
_Static_assert(sizeof(struct mesh_flow) == 24, "mesh_flow");

struct mesh_note {
	__u32 who;     /* enum mesh_who */
	__u32 payload; /* enum mesh_payload; of kubelet's sockets only */
};

struct mesh_port_key {
	__u64 cookie;
	__u16 port;
	__u16 pad[3];
};
_Static_assert(sizeof(struct mesh_port_key) == 16, "mesh_port_key");

/* LPM: prefix_len counts the 64 bits of the cookie too. */
struct mesh_cidr_key {
	__u32 prefix_len;
	__u8 cookie[8]; /* as in memory: the trie compares bytes and needs no alignment */
	__u8 addr[16];
};
_Static_assert(sizeof(struct mesh_cidr_key) == 28, "mesh_cidr_key");

struct mesh_decision {
	__u64 time;   /* ns, CLOCK_MONOTONIC */
	__u64 cookie; /* network namespace */
	__u64 generation;
	__u8 saddr[16]; /* zero in the connect hook: not chosen yet */
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u16 reason; /* enum mesh_reason */
	__u8 layer;   /* enum mesh_layer */
	__u8 verdict; /* enum mesh_verdict */
	__u32 policy; /* 0: no policy took part */
	__u32 rule;
	__u32 detail; /* what the reason says; else 0 */
	__u32 pad;
};
_Static_assert(sizeof(struct mesh_decision) == 80, "mesh_decision");

struct mesh_meta {
	__u32 layout; /* enum mesh_layout */
	__u32 pad;
	__u8 build[56]; /* NUL padded */
};
_Static_assert(sizeof(struct mesh_meta) == 64, "mesh_meta");

#endif
