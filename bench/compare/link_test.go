package main

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	ostrakapb "github.com/ostraka-db/ostraka/proto"
)

// One program can hold the clients of etcd and of Ostraka: this one does. Both have a kv.proto and a raft.proto, and the Go
// runtime of protobuf panics when a program starts that holds two files, or two messages, of one name. So that this test can
// run at all is most of it; the rest is that nothing has been told to look away.
func TestBothClientsInOneProgram(t *testing.T) {
	for _, path := range []string{"kv.proto", "raft.proto"} {
		theirs, err := protoregistry.GlobalFiles.FindFileByPath(path)
		if err != nil || strings.HasPrefix(string(theirs.Package()), "ostraka.") {
			t.Errorf("%s of etcd: %v, %v", path, theirs, err)
		}
		ours, err := protoregistry.GlobalFiles.FindFileByPath("ostraka/v1/" + path)
		if err != nil || ours.Package() != "ostraka.v1" {
			t.Errorf("%s of Ostraka: %v, %v", path, ours, err)
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if of := string(file.Package()); strings.HasPrefix(of, "ostraka") != strings.HasPrefix(file.Path(), "ostraka/v1/") {
			t.Errorf("%s is of package %s", file.Path(), of)
		}
		return true
	})
	if name := ostrakapb.KV_ServiceDesc.ServiceName; name != "ostraka.v1.KV" {
		t.Errorf("the service is called %s", name)
	}
}
