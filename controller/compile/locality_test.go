package compile

import (
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
)

// TestLocalityOfPod: a pod may say where it stands; what is no place leaves it where its node is.
func TestLocalityOfPod(t *testing.T) {
	node := model.Locality{Region: "r", Zone: "z"}
	for label, want := range map[string]model.Locality{
		"":                     node,
		"region1":              {Region: "region1"},
		"region1.zone1":        {Region: "region1", Zone: "zone1"},
		"region1.zone1.sub":    {Region: "region1", Zone: "zone1", Subzone: "sub"},
		"region1..sub":         node,
		"region1.":             node,
		"region1.zone1.sub.xx": node,
	} {
		p := &model.Pod{Labels: map[string]string{api.LabelLocality: label}}
		if got := localityOf(p, node); got != want {
			t.Errorf("%q is %+v, want %+v", label, got, want)
		}
	}
	if got := localityOf(&model.Pod{}, node); got != node {
		t.Errorf("without a label: %+v", got)
	}
}
