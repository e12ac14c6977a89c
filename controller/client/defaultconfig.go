package client

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// DefaultConfig returns MeshConfig.defaultConfig; never nil. It is the same value while nothing of it changes.
func (s *Snapshot) DefaultConfig() *meshv1alpha1.ProxyConfig { return s.config }

func parseDefaultConfig(m *settings.MeshSettings) (*meshv1alpha1.ProxyConfig, error) {
	out := &meshv1alpha1.ProxyConfig{}
	if raw := m.GetDefaultConfig(); raw != nil {
		if err := raw.UnmarshalTo(out); err != nil {
			return nil, fmt.Errorf("default_config: %w", err)
		}
	}
	return out, nil
}

// setDefaultConfig keeps the value when it is equal: what was made of it stays good.
func (b *builder) setDefaultConfig(c *meshv1alpha1.ProxyConfig) {
	if !proto.Equal(b.s.config, c) {
		b.s.config = c
	}
}
