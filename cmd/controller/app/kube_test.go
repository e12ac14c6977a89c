package app

import (
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// TestTokenReviewsHaveTheirOwnLimit: a flood of tokens must not use up the requests that renew the Lease.
func TestTokenReviewsHaveTheirOwnLimit(t *testing.T) {
	shared := flowcontrol.NewTokenBucketRateLimiter(80, 160)
	rc := &rest.Config{Host: "https://192.0.2.1", RateLimiter: shared}
	reviews, err := reviewClient(rc)
	if err != nil {
		t.Fatal(err)
	}
	main, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	own := reviews.AuthenticationV1().RESTClient().GetRateLimiter()
	if own == main.CoordinationV1().RESTClient().GetRateLimiter() || own == shared || own.QPS() <= 0 {
		t.Errorf("the limiter %v is shared", own)
	}
	if rc.RateLimiter != shared || rc.Timeout != 0 {
		t.Error("the configuration of the other client changed")
	}
}
