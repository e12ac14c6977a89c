//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* No program: carries the types of mesh.h into BTF, from which bpf2go writes the Go ones. */
#include "mesh.h"

const enum mesh_layout *anchor_layout __attribute__((unused));
const enum mesh_mark *anchor_mark __attribute__((unused));
const enum mesh_who *anchor_who __attribute__((unused));
const enum mesh_listener *anchor_listener __attribute__((unused));
const enum mesh_layer *anchor_layer __attribute__((unused));
const enum mesh_verdict *anchor_verdict __attribute__((unused));
const enum mesh_reason *anchor_reason __attribute__((unused));
const enum mesh_event *anchor_event __attribute__((unused));
const enum mesh_pod_flags *anchor_pod_flags __attribute__((unused));
const enum mesh_port_flags *anchor_port_flags __attribute__((unused));
const enum mesh_seen *anchor_seen __attribute__((unused));
const enum mesh_cidr_flags *anchor_cidr_flags __attribute__((unused));
const struct mesh_pod *anchor_pod __attribute__((unused));
const struct mesh_node *anchor_node __attribute__((unused));
const struct mesh_flow_key *anchor_flow_key __attribute__((unused));
const struct mesh_flow *anchor_flow __attribute__((unused));
const struct mesh_port_key *anchor_port_key __attribute__((unused));
const struct mesh_cidr_key *anchor_cidr_key __attribute__((unused));
const struct mesh_decision *anchor_decision __attribute__((unused));
const struct mesh_meta *anchor_meta __attribute__((unused));
