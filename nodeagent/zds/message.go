package zds

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
)

// encodeAdd builds the message of an Add and the files that travel with it, in their order.
func encodeAdd(v zdsapi.Version, w Workload) ([]byte, []*os.File, error) {
	if err := checkUID(w.UID); err != nil {
		return nil, nil, err
	}
	if w.Netns == nil {
		return nil, nil, fmt.Errorf("encode pod %s: no netns", w.UID)
	}
	add := &zdsapi.AddWorkload{Uid: w.UID, WorkloadInfo: w.Info}
	files := []*os.File{w.Netns}
	if v == zdsapi.Version_V2 {
		add.Probes = w.Probes
		for _, a := range w.Addrs {
			add.Addresses = append(add.Addresses, a.Unmap().AsSlice())
		}
		add.Listeners = w.Listeners.kinds()
		for _, k := range add.Listeners {
			files = append(files, w.Listeners[k])
		}
	}
	data, err := encode(v, &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Add{Add: add}})
	if err != nil {
		return nil, nil, fmt.Errorf("encode pod %s: %w", w.UID, err)
	}
	return data, files, nil
}

// encode marshals m and refuses what is too long for the version.
func encode(v zdsapi.Version, m proto.Message) ([]byte, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	if len(data) > bound(v) {
		return nil, fmt.Errorf("%s has %d bytes, version %s allows %d",
			m.ProtoReflect().Descriptor().Name(), len(data), v, bound(v))
	}
	return data, nil
}

// decodeRequest reads a request and checks it against the number of descriptors that came with it.
func decodeRequest(v zdsapi.Version, data []byte, descriptors int) (*zdsapi.WorkloadRequest, error) {
	var m zdsapi.WorkloadRequest
	if err := proto.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("unmarshal WorkloadRequest: %w", err)
	}
	want := 0
	switch p := m.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		if err := checkAdd(v, p.Add); err != nil {
			return nil, err
		}
		want = 1 + len(p.Add.GetListeners())
	case *zdsapi.WorkloadRequest_Keep:
		if err := checkUID(p.Keep.GetUid()); err != nil {
			return nil, fmt.Errorf("keep: %w", err)
		}
	case *zdsapi.WorkloadRequest_Del:
		if err := checkUID(p.Del.GetUid()); err != nil {
			return nil, fmt.Errorf("del: %w", err)
		}
	case *zdsapi.WorkloadRequest_SnapshotSent:
	default:
		return nil, fmt.Errorf("request has no known payload")
	}
	if descriptors != want {
		return nil, fmt.Errorf("request came with %d descriptors, want %d", descriptors, want)
	}
	return &m, nil
}

func checkAdd(v zdsapi.Version, add *zdsapi.AddWorkload) error {
	if err := checkUID(add.GetUid()); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	if v != zdsapi.Version_V2 && len(add.GetListeners())+len(add.GetProbes())+len(add.GetAddresses()) > 0 {
		return fmt.Errorf("add pod %s: version 2 fields in a version 1 message", add.GetUid())
	}
	if err := checkKinds(add.GetListeners()); err != nil {
		return fmt.Errorf("add pod %s: %w", add.GetUid(), err)
	}
	for _, p := range add.GetProbes() {
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			return fmt.Errorf("add pod %s: probe port %d is not a port", add.GetUid(), p.GetPort())
		}
	}
	_, err := addresses(add)
	return err
}

// addresses converts the pod's addresses.
func addresses(add *zdsapi.AddWorkload) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range add.GetAddresses() {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("add pod %s: address of %d bytes, want 4 or 16", add.GetUid(), len(b))
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

func checkKinds(kinds []zdsapi.ListenerKind) error {
	if len(kinds) >= maxDescriptors {
		return fmt.Errorf("%d listeners, at most %d are allowed", len(kinds), maxDescriptors-1)
	}
	seen := map[zdsapi.ListenerKind]bool{}
	for _, k := range kinds {
		if k <= zdsapi.ListenerKind_UNKNOWN || seen[k] {
			return fmt.Errorf("listener kind %d is unspecified or repeated", k)
		}
		seen[k] = true
	}
	return nil
}

func checkUID(uid string) error {
	if uid == "" || len(uid) > maxUID || strings.ContainsFunc(uid, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("pod uid %.64q is not one", uid)
	}
	return nil
}

// decodeHello reads a ztunnel's first message.
func decodeHello(data []byte, descriptors int) (*zdsapi.ZdsHello, error) {
	var m zdsapi.ZdsHello
	if err := proto.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("unmarshal ZdsHello: %w", err)
	}
	switch {
	case descriptors != 0:
		return nil, fmt.Errorf("hello came with %d descriptors", descriptors)
	case m.GetVersion() != zdsapi.Version_V1 && m.GetVersion() != zdsapi.Version_V2:
		return nil, fmt.Errorf("hello asks for version %d, known are 1 and 2", m.GetVersion())
	case m.GetVersion() == zdsapi.Version_V1 && m.GetHeld() != 0:
		return nil, fmt.Errorf("hello of version 1 announces %d held pods", m.GetHeld())
	case m.GetHeld() > maxHeld:
		return nil, fmt.Errorf("hello announces %d held pods, at most %d are allowed", m.GetHeld(), maxHeld)
	}
	return &m, nil
}

// decodeHeld reads one of the messages that follow a version 2 hello.
func decodeHeld(data []byte, descriptors int) (*zdsapi.Held, error) {
	var m zdsapi.Held
	if err := proto.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("unmarshal Held: %w", err)
	}
	if err := checkUID(m.GetUid()); err != nil {
		return nil, fmt.Errorf("held: %w", err)
	}
	if err := checkKinds(m.GetListeners()); err != nil {
		return nil, fmt.Errorf("held pod %s: %w", m.GetUid(), err)
	}
	if descriptors != len(m.GetListeners()) {
		return nil, fmt.Errorf("held pod %s came with %d descriptors, want %d", m.GetUid(), descriptors, len(m.GetListeners()))
	}
	return &m, nil
}

// decodeResponse reads an acknowledgement and returns the peer's error text, "" for success.
func decodeResponse(data []byte, descriptors int) (string, error) {
	var m zdsapi.WorkloadResponse
	if err := proto.Unmarshal(data, &m); err != nil {
		return "", fmt.Errorf("unmarshal WorkloadResponse: %w", err)
	}
	if descriptors != 0 {
		return "", fmt.Errorf("response came with %d descriptors", descriptors)
	}
	if m.GetAck() == nil {
		return "", fmt.Errorf("response is not an acknowledgement")
	}
	return m.GetAck().GetError(), nil
}

// takeListeners wraps received descriptors. Kinds that this build does not know are closed: a newer peer may have more.
func takeListeners(uid string, kinds []zdsapi.ListenerKind, fds []int) Listeners {
	out := Listeners{}
	for i, k := range kinds {
		if _, known := zdsapi.ListenerKind_name[int32(k)]; !known {
			closeAll(fds[i : i+1])
			continue
		}
		out[k] = os.NewFile(uintptr(fds[i]), "listener "+strings.ToLower(k.String())+" of pod "+uid)
	}
	return out
}
