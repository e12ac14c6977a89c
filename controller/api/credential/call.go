package credential

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// Of the call by which nodes have credentials: a stream of requests one way and of credentials the other.
const (
	service = "undermesh.v1.Credentials"
	method  = "Watch"
)

type (
	// ServerStream is the controller's end of a call.
	ServerStream = grpc.BidiStreamingServer[settings.CredentialRequest, settings.Credential]
	// ClientStream is the node's end of a call.
	ClientStream = grpc.BidiStreamingClient[settings.CredentialRequest, settings.Credential]
)

// Server answers calls.
type Server interface {
	// WatchCredentials serves one call until it ends.
	WatchCredentials(s ServerStream) error
}

// Register adds the service to a gRPC server.
func Register(r grpc.ServiceRegistrar, s Server) {
	r.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*Server)(nil), Streams: []grpc.StreamDesc{{
		StreamName: method, ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error {
			return srv.(Server).WatchCredentials(&grpc.GenericServerStream[settings.CredentialRequest, settings.Credential]{ServerStream: s})
		},
	}}}, s)
}

// Watch opens a call, which ends with ctx.
func Watch(ctx context.Context, conn grpc.ClientConnInterface) (ClientStream, error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}, "/"+service+"/"+method)
	if err != nil {
		return nil, fmt.Errorf("ask for credentials: %w", err)
	}
	return &grpc.GenericClientStream[settings.CredentialRequest, settings.Credential]{ClientStream: s}, nil
}
