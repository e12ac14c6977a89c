package explain

import (
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/client"
)

// World is what a node decides by.
type World struct {
	Snapshot *client.Snapshot
	// Ejected are the endpoints that the pod's own outlier detection has taken out, by cluster and the endpoints' keys.
	Ejected map[string][]string
}

// written is a World as text.
type written struct {
	Generation uint64              `json:"generation"`
	Ejected    map[string][]string `json:"ejected,omitempty"`
	Resources  []Resource          `json:"resources"`
}

// Write writes the world as ReadWorld reads it, one resource after the other: it is never in memory a second time.
func (w World) Write(out io.Writer) error {
	ejected, err := json.Marshal(w.Ejected)
	if err != nil {
		return fmt.Errorf("encode ejected endpoints: %w", err)
	}
	if _, err := fmt.Fprintf(out, "{\"generation\":%d,\"ejected\":%s,\"resources\":[", w.Snapshot.Generation(), ejected); err != nil {
		return err
	}
	separator := "\n"
	for r := range w.Snapshot.Resources {
		one, err := encodeOne(r)
		if err != nil {
			return err
		}
		text, err := json.Marshal(one)
		if err != nil {
			return fmt.Errorf("encode resource %s: %w", r.Name, err)
		}
		if _, err := fmt.Fprintf(out, "%s%s", separator, text); err != nil {
			return err
		}
		separator = ",\n"
	}
	_, err = io.WriteString(out, "\n]}\n")
	return err
}

// ReadWorld reads what World.Write has written, or a control plane says that it serves: resources that no snapshot is made of are
// left out.
func ReadWorld(raw []byte) (World, error) {
	var in written
	if err := json.Unmarshal(raw, &in); err != nil {
		return World{}, fmt.Errorf("read snapshot: %w", err)
	}
	known := in.Resources[:0]
	for _, r := range in.Resources {
		if client.Understands(r.Type) {
			known = append(known, r)
		}
	}
	snap, err := snapshotOf(in.Generation, known)
	return World{Snapshot: snap, Ejected: in.Ejected}, err
}

// snapshotOf makes a snapshot of resources; what a newer build has put into them is left out.
func snapshotOf(generation uint64, list []Resource) (*client.Snapshot, error) {
	all := make([]client.Resource, 0, len(list))
	for i, in := range list {
		m, err := newMessage(in.Type)
		if err != nil {
			return nil, fmt.Errorf("resources[%d]: %w", i, err)
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(in.Resource, m); err != nil {
			return nil, fmt.Errorf("resources[%d] (%s): %w", i, in.Name, err)
		}
		all = append(all, client.Resource{Name: in.Name, Message: m})
	}
	empty, err := client.NewSnapshot()
	if err != nil {
		return nil, err
	}
	snap, err := empty.With(generation, all, nil)
	if err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	return snap, nil
}

// newMessage makes a message of one of the types of a snapshot.
func newMessage(typ string) (proto.Message, error) {
	if !client.Understands(typ) {
		return nil, fmt.Errorf("type %q is none of a snapshot", typ)
	}
	return (&anypb.Any{TypeUrl: typ}).UnmarshalNew()
}
