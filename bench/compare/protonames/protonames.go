// Package protonames lets one process hold the messages of etcd and of Ostraka. Both register files called kv.proto and
// raft.proto, and the Go runtime of protobuf panics at the second file of a name, unless a variable of the environment
// says otherwise before that. The messages themselves are in packages of different names and don't collide; only
// reflection by file name would find the first file alone, and nothing here uses it.
//
// The order is the language's: packages are initialised in the order of their import paths, as soon as what they import
// is. This one needs only os, and its path is before those of Ostraka's and etcd's messages.
//
// It can go as soon as Ostraka's files are registered under a folder of their own.
package protonames

import "os"

const variable = "GOLANG_PROTOBUF_REGISTRATION_CONFLICT"

func init() { os.Setenv(variable, "ignore") }

// Done is for after initialisation: processes that this one starts have no need of the variable.
func Done() { os.Unsetenv(variable) }
