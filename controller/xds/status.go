package xds

import "time"

// ClientStatus is one connected client, for proxy-status.
type ClientStatus struct {
	ID         string                `json:"id"`         // of the node, as it says; empty before its first request
	NodeName   string                `json:"nodeName"`   // of the Kubernetes node, proved by the token or as it says
	ClusterID  string                `json:"clusterID"`  // as it says
	Connection string                `json:"connection"` // number of the stream
	Peer       string                `json:"peer"`       // address
	Caller     string                `json:"caller"`     // proved by the token, empty on the plain listener
	Pod        string                `json:"pod"`        // name.namespace, proved by the token; empty when it does not say
	Connected  time.Time             `json:"connected"`
	Types      map[string]TypeStatus `json:"types"` // by type URL; those that it subscribed to
}

// TypeStatus is how far one client is with one type.
type TypeStatus struct {
	SentGeneration  uint64    `json:"sentGeneration"` // 0: none
	AckedGeneration uint64    `json:"ackedGeneration"`
	SentAt          time.Time `json:"sentAt"`
	AckedAt         time.Time `json:"ackedAt"`
	Pending         bool      `json:"pending"`             // the last response is not answered yet
	Refused         bool      `json:"refused"`             // the last response that was answered was refused
	Rejected        uint64    `json:"rejected"`            // responses refused on this stream
	LastError       string    `json:"lastError,omitempty"` // of the last refusal
}

// Words of State, each without a space: proxy-status is read by column.
const (
	NotSent  = "NOT-SENT" // not subscribed to, or nothing was answered yet
	Synced   = "SYNCED"
	Stale    = "STALE"    // the client has not answered the newest response
	Rejected = "REJECTED" // it refused it
)

// State sums it up.
func (t TypeStatus) State() string {
	switch {
	case t.SentAt.IsZero():
		return NotSent
	case t.Pending:
		return Stale
	case t.Refused:
		return Rejected
	}
	return Synced
}
