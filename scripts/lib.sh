# shellcheck shell=bash
# What the scripts share; source it. It sets `root`, the checkout, and these:
#
#   prepare             pyaoe and its tools first on PATH, installed where they are not
#   own_place           print a directory of the user's own for this checkout
#   step NAME CMD...    run a command: one line with its time, its output if it fails
#   fail WHAT           one line to stderr, and the end

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
red='' green='' plain='' again=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m' again=$'\r'
fi

fail() {
  echo "${0##*/}: $1" >&2
  exit 1
}

microseconds() { echo "${EPOCHREALTIME//[.,]/}"; }

since() { # START: the seconds since then, "0.4 s"
  local tenths=$((($(microseconds) - $1) / 100000))
  echo "$((tenths / 10)).$((tenths % 10)) s"
}

step() {
  local name=$1 start output status=0
  start=$(microseconds)
  shift
  [ -z "$again" ] || printf '%-12s...' "$name"
  output=$("$@" 2>&1 </dev/null) || status=$?
  if [ "$status" = 0 ]; then
    printf '%s%-12s%sok%s  %s\n' "$again" "$name" "$green" "$plain" "$(since "$start")"
  else
    printf '%s%-12s%sFAILED%s  %s\n%s\n' \
      "$again" "$name" "$red" "$plain" "$(since "$start")" "$output"
  fi
  return "$status"
}

# What an environment was made from: the Python, the place, the requirements.
fingerprint() { # VENV
  "$1/bin/python" -V >/dev/null && "${PYTHON:-$1/bin/python}" -V &&
    echo "$root" && sha256sum <"$root/pyproject.toml"
}

fresh() { # VENV: is it complete and made from what is here now?
  [ -r "$1/stamp" ] && [ "$(fingerprint "$1" 2>/dev/null)" = "$(<"$1/stamp")" ]
}

own_place() {
  local place=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  [ -n "$place" ] || return
  place=$place/pyaoe/$(cksum <<<"$root" | cut -d ' ' -f 1)
  mkdir -p "$place" 2>/dev/null && [ -O "$place" ] && echo "$place"
}

# The environment is .venv if that is ready or ours to make. Somebody else's, or a
# checkout that cannot be written, is left alone: the user's cache holds one then.
prepare() {
  local venv=$root/.venv
  if ! fresh "$venv"; then
    if [ ! -w "$root" ] || { [ -e "$venv" ] && [ ! -O "$venv" ]; }; then
      venv=$(own_place)/venv ||
        fail "$root: not writable, nor is a cache. Set XDG_CACHE_HOME to a directory of yours"
    fi
    fresh "$venv" || step environment "$root/scripts/venv" "$venv" || exit 1
  fi
  unset PYTHONHOME PYTHONPATH
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}
