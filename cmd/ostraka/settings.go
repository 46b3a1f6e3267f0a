package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// A setting is a flag that the environment and the configuration file can give as well. Commands mark theirs with
// settings; flags that only make sense on one command line (--json, --limit) are none.
const settingMark = "ostraka-setting"

// flagConfig names the configuration file; it is a setting that a file cannot give.
const flagConfig = "config"

// settings marks flags as settings and adds --config.
func settings(flags *pflag.FlagSet, names ...string) {
	flags.String(flagConfig, "", "TOML `file` with settings: keys are names of flags, as in data-dir = \"…\"")
	for _, name := range append(names, flagConfig) {
		if err := flags.SetAnnotation(name, settingMark, nil); err != nil {
			panic(err) // a name that is no flag: a mistake in this program
		}
	}
}

// settle gives settings that the command line did not give the value of the environment, else that of the file.
func settle(flags *pflag.FlagSet, lookupEnv func(string) (string, bool)) error {
	if flags.Lookup(flagConfig) == nil {
		return nil
	}
	if err := settleFromEnvironment(flags, lookupEnv); err != nil {
		return err
	}
	path, err := flags.GetString(flagConfig)
	if err != nil || path == "" {
		return err
	}
	return settleFromFile(flags, path)
}

func settleFromEnvironment(flags *pflag.FlagSet, lookupEnv func(string) (string, bool)) (failed error) {
	flags.VisitAll(func(f *pflag.Flag) {
		if !isSetting(f) || f.Changed || failed != nil {
			return
		}
		name := variable(f.Name)
		if value, ok := lookupEnv(name); ok {
			if err := flags.Set(f.Name, value); err != nil {
				failed = usagef("environment variable %s=%q: %w", name, value, err)
			}
		}
	})
	return failed
}

// variable is the environment's name for a setting: data-dir is OSTRAKA_DATA_DIR.
func variable(name string) string {
	return "OSTRAKA_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func isSetting(f *pflag.Flag) bool {
	_, marked := f.Annotations[settingMark]
	return marked
}

func settleFromFile(flags *pflag.FlagSet, path string) error {
	var file map[string]any
	if _, err := toml.DecodeFile(path, &file); err != nil {
		return usagef("configuration %s: %w", path, err)
	}
	names := make([]string, 0, len(file))
	for name := range file {
		names = append(names, name)
	}
	slices.Sort(names) // so that of several mistakes the same one is always told
	given := make(map[string]string)
	for _, name := range names {
		// data_dir is what TOML's own style suggests, data-dir what the flag is called: both are fine, together
		// they are not.
		flag := strings.ReplaceAll(name, "_", "-")
		f := flags.Lookup(flag)
		if f == nil || !isSetting(f) || flag == flagConfig {
			return usagef("configuration %s: unknown key %q; this command knows %s", path, name, strings.Join(fileKeys(flags), ", "))
		}
		if other, twice := given[flag]; twice {
			return usagef("configuration %s: %q and %q are the same key", path, other, name)
		}
		given[flag] = name
		if f.Changed {
			continue
		}
		text, err := settingText(file[name])
		if err == nil {
			err = flags.Set(flag, text)
		}
		if err != nil {
			return usagef("configuration %s: key %q: %w", path, name, err)
		}
	}
	return nil
}

func fileKeys(flags *pflag.FlagSet) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if isSetting(f) && f.Name != flagConfig {
			names = append(names, f.Name)
		}
	})
	return names
}

// settingText is a TOML value as a flag would have it.
func settingText(value any) (string, error) {
	switch v := value.(type) {
	case string, bool, int64, float64:
		return fmt.Sprint(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, element := range v {
			text, ok := element.(string)
			if !ok {
				return "", fmt.Errorf("a list must hold strings, not %v", element)
			}
			parts[i] = text
		}
		return strings.Join(parts, ","), nil
	}
	return "", fmt.Errorf("want a string, a number, a boolean or a list of strings, not %v", value)
}
