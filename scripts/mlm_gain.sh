#!/usr/bin/env bash
# What masked-LM distillation is worth: a student taught on unlabelled text, one trained on it alone and one that never
# saw it (configs/mlm_distil.yaml), each fine-tuned on labels with three seeds (configs/mlm_finetune.yaml).
#
#   scripts/mlm_gain.sh OUT TEXT.txt HELD_OUT.txt TRAIN.tsv DEV.tsv [key=value of the masked-LM run ...]
#
# TEXT and HELD_OUT: a document a line. TRAIN and DEV: columns sentence and label. Masked accuracies are in
# OUT/mlm/summary.json, accuracies on DEV in OUT/tuned/summary.json.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '5,8p' "$0" >&2; exit 2; }
out=$1 text=$2 held_out=$3 train=$4 dev=$5
shift 5
jaxdistill=${JAXDISTILL:-python -m jaxdistill}
configs=$(dirname "$0")/../configs

$jaxdistill run "$configs/mlm_distil.yaml" output_dir="$out/mlm" data.sample_by=line "data.train={path: $text}" \
  "data.validation={path: $held_out}" data.test=null "$@"
$jaxdistill run "$configs/mlm_finetune.yaml" output_dir="$out/tuned" 'data.text=[sentence]' \
  "data.train={path: $train}" data.validation=null "data.test={path: $dev}" \
  stages.0.student.pretrained="$out/mlm/stages/student/student" \
  stages.1.student.pretrained="$out/mlm/stages/alone/student"
